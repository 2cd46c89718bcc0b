"""The claims of HaloNet (Vaswani et al., 2021, https://arxiv.org/abs/2103.12731), measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.claims import Measured, claim, out_of_reach
from regard.claims._halonet_images import HALOS, RECIPE, accuracies, larger_digits, pairs
from regard.claims._small_images import Images
from regard.layers.halo_attention import HaloAttention
from regard.measure import contraction_macs, one_thread, peak_bytes, race
from regard.models.vision.halonet import HaloNet
from regard.models.vision.halonet_config import HaloNetConfig
from regard.ops.halo import gather_neighbourhoods, halo_attention, halo_weights, per_pixel_attention
from regard.ops.windows import merge_windows, split_windows

PAPER_MILLIONS = {
    "halonet_h0": 5.5,
    "halonet_h1": 8.1,
    "halonet_h2": 9.4,
    "halonet_h3": 11.8,
    "halonet_h4": 19.1,
    "halonet_h5": 30.7,
    "halonet_h6": 43.4,
    "halonet_h7": 67.4,
}
SIDE, CHANNELS, HEADS, BLOCK, HALO = 64, 64, 4, 8, 3
WINDOW = BLOCK + 2 * HALO
PER_PIXEL = (7, 13)
ERROR = 1e-10
Operands = tuple[Tensor, Tensor, Tensor, Tensor]


def _parameters(config: HaloNetConfig) -> dict[str, int]:
    """By name, counted without memory for them."""
    with torch.device("meta"):
        return {name: parameter.numel() for name, parameter in HaloNet(config).named_parameters()}


def _operands(space: tuple[int, int], window: int, *, dtype: torch.dtype = torch.float32) -> Operands:
    """Queries, keys with values, and both tables: 64 channels in 4 heads."""
    generator = torch.Generator().manual_seed(window)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    tables = (normal(2 * window - 1, CHANNELS // HEADS) / 4 for _ in range(2))
    return normal(1, *space, CHANNELS), normal(1, *space, 2 * CHANNELS), next(tables), next(tables)


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "halonet",
    name="parameters",
    grade="exact",
    statement="The family H0 to H7 by block, halo, ratios of values and outputs, layers and final convolution",
    figure=", ".join(f"{millions} M" for millions in PAPER_MILLIONS.values()),
    where="the table of configurations",
    criterion="all eight counts within 0.5 % of the paper's",
)
def parameters() -> Measured:
    """Counted without memory for the parameters."""
    counts = {name: sum(_parameters(HaloNet.VARIANTS[name].config).values()) for name in PAPER_MILLIONS}
    worst = max(abs(counts[name] / (1e6 * millions) - 1) for name, millions in PAPER_MILLIONS.items())
    return Measured(
        value=", ".join(f"{count / 1e6:.3f} M" for count in counts.values()),
        held=worst <= 0.005,
        detail=f"at most {100 * worst:.2f} % away",
    )


@claim(
    "halonet",
    name="cost_of_the_receptive_field",
    grade="exact",
    statement="The parameters of self-attention do not grow with its receptive field, but for relative positions",
    where="blocked local attention with haloing",
    criterion="a halo wider by 2 at a fixed block adds 8 x 2 x d parameters to each of H1's 19 layers, all in the two "
    "tables, and nothing else",
)
def cost_of_the_receptive_field() -> Measured:
    """Halos of 3 and 5 positions around blocks of 8."""
    config = HaloNet.VARIANTS["halonet_h1"].config
    narrow, wide = _parameters(config), _parameters(replace(config, halo_size=config.halo_size + 2))
    grown = {name for name in narrow if wide[name] != narrow[name]}
    added = sum(wide.values()) - sum(narrow.values())
    layers = zip(config.blocks, config.widths, config.num_heads, strict=True)
    expected = sum(len(kinds) * 8 * 2 * width // heads for kinds, width, heads in layers)
    only_tables = narrow.keys() == wide.keys() and all(name.endswith("_table") for name in grown)
    return Measured(
        value=f"{added:,} of {sum(wide.values()):,} parameters",
        held=added == expected and only_tables,
        detail=f"{len(grown)} tables grew, {expected:,} expected",
    )


def _whole(q: Tensor, kv: Tensor, row_table: Tensor, column_table: Tensor) -> Tensor:
    """Attention of a whole square map with relative logits, all offsets written out; maps `(batch, y, x, c)`."""
    side, width = q.shape[1], CHANNELS // HEADS
    offsets = torch.arange(side)[None, :] - torch.arange(side)[:, None] + side - 1
    queries = q.unflatten(-1, (HEADS, width))
    k, v = kv.unflatten(-1, (HEADS, 2 * width)).chunk(2, dim=-1)
    scores = torch.einsum("byxhd,bYXhd->bhyxYX", queries, k) * width**-0.5
    scores += torch.einsum("byxhd,yYd->bhyxY", queries, row_table[offsets])[..., None]
    scores += torch.einsum("byxhd,xXd->bhyxX", queries, column_table[offsets])[..., None, :]
    weights = scores.flatten(4).softmax(dim=-1).unflatten(-1, (side, side))
    return torch.einsum("bhyxYX,bYXhd->byxhd", weights, v).flatten(3)


@claim(
    "halonet",
    name="special_cases",
    grade="exact",
    statement="Blocks of one position are local attention pixel by pixel, and a block of the map's size is global "
    "attention; attention downsampling attends at every second position",
    where="blocked local attention with haloing, attention downsampling",
    criterion=f"in float64 at most {ERROR:g} away: b = 1 and h = 3 from per-pixel windows of 7; h = 0 from attention "
    "inside blocks; b = the map's side and h = 0 from full attention with relative logits; stride 2 from stride 1 at "
    "even positions where the tables are zero",
)
def special_cases() -> Measured:
    """Sizes of 11 x 13 for pixels, 12 x 12 in blocks of 4, 7 x 7 as one block, 16 x 24 with a stride."""
    double = partial(_operands, dtype=torch.float64)
    halo = partial(halo_attention, num_heads=HEADS)
    errors = {}
    pixels = double((11, 13), 7)
    single = halo(*pixels, block_size=1, halo_size=3)
    errors["b = 1"] = single - per_pixel_attention(*pixels, num_heads=HEADS, window=7)
    q, kv, *tables = double((12, 12), 4)
    windows = [split_windows(part, (4, 4)).unflatten(1, (4, 4)) for part in (q, kv)]
    inside = _whole(windows[0], windows[1], tables[0], tables[1])
    errors["h = 0"] = halo(q, kv, *tables, block_size=4, halo_size=0) - merge_windows(
        inside.flatten(1, 2), (4, 4), (12, 12)
    )
    square = double((7, 7), 7)
    errors["b = map"] = halo(*square, block_size=7, halo_size=0) - _whole(*square)
    q, kv, *tables = double((16, 24), WINDOW)
    sizes: dict[str, Any] = {"block_size": BLOCK, "halo_size": HALO}
    flat = [torch.zeros_like(table) for table in tables]
    strided = halo(q[:, ::2, ::2], kv, *flat, stride=2, **sizes)
    errors["stride 2"] = strided - halo(q, kv, *flat, **sizes)[:, ::2, ::2]
    worst = {name: float(error.abs().max()) for name, error in errors.items()}
    return Measured(
        value=f"at most {max(worst.values()):.1e} away",
        held=max(worst.values()) <= ERROR,
        detail=", ".join(f"{name}: {error:.1e}" for name, error in worst.items()),
    )


@claim(
    "halonet",
    name="macs",
    grade="exact",
    statement="Blocked attention computes (b + 2h)^2 d products for each query's logits",
    where="blocked local attention with haloing",
    criterion="64 x 64 positions, b = 8, h = 3, 4 heads of d = 16: the logits' contractions are HW (b + 2h)^2 d a "
    "head, besides 2 HW d (w + b - 1) a head for relative positions",
)
def macs() -> Measured:
    """Counted in a forward."""
    operands = _operands((SIDE, SIDE), WINDOW)
    counted = contraction_macs(lambda: halo_weights(*operands, num_heads=HEADS, block_size=BLOCK, halo_size=HALO))
    relative = 2 * SIDE**2 * CHANNELS * (WINDOW + BLOCK - 1)
    expected = SIDE**2 * WINDOW**2 * CHANNELS
    return Measured(
        value=f"{counted - relative:,.0f} counted, {expected:,} by the formula",
        held=counted - relative == expected,
        detail=f"{relative:,} for relative positions, {100 * relative / expected:.0f} % of it",
    )


@claim(
    "halonet",
    name="gathered_memory",
    grade="exact",
    statement="Neighbourhoods shared by a block take far less memory than one around every pixel",
    where="blocked local attention with haloing",
    criterion="b = 8, h = 3: gathered numbers are (b + 2h)^2 / b^2 = 3.0625 times the map's, and k^2 = 196 times where "
    "each pixel gathers a window of the same 14",
)
def gathered_memory() -> Measured:
    """Elements of the gathered windows over those of the map."""
    x = torch.zeros(1, SIDE, SIDE, 2)
    blocked = gather_neighbourhoods(x, block_size=BLOCK, halo_size=HALO).numel() / x.numel()
    before, after = (WINDOW - 1) // 2, WINDOW // 2
    bordered = pad(x, (0, 0, before, after, before, after))
    single = bordered.unfold(1, WINDOW, 1).unfold(2, WINDOW, 1).numel() / x.numel()
    return Measured(value=f"{blocked:g} against {single:g} times", held=blocked == 3.0625 and single == 196)


# --------------------------------------------------------------------------------------------------- ratio


@claim(
    "halonet",
    name="blocked_against_per_pixel",
    grade="ratio",
    statement="Blocked local attention is faster and takes less memory than earlier local self-attention",
    where="blocked local attention with haloing",
    criterion="64 x 64 positions of 64 channels, 4 heads, float32, without gradients: b = 8 and h = 3 (196 keys a "
    "query) against windows unfolded around every pixel with k = 7 (49 keys): medians of one run >= 3 times shorter, "
    "peak memory >= 5 times less",
)
def blocked_against_per_pixel() -> Measured:
    """One thread; k = 13 (169 keys, nearest to 196) is reported beside it."""
    blocked = partial(
        halo_attention, *_operands((SIDE, SIDE), WINDOW), num_heads=HEADS, block_size=BLOCK, halo_size=HALO
    )
    runs: dict[str, Callable[[], Tensor]] = {"blocked": blocked}
    for window in PER_PIXEL:
        operands = _operands((SIDE, SIDE), window)
        runs[f"k = {window}"] = partial(per_pixel_attention, *operands, num_heads=HEADS, window=window)
    with one_thread(), torch.no_grad():
        times = race(runs, rounds=9)
        memory = {name: peak_bytes(run, warmup=1) for name, run in runs.items()}
    faster = {name: times.ratio(name, "blocked") for name in runs}
    less = {name: memory[name] / memory["blocked"] for name in runs}
    small, large = (f"k = {window}" for window in PER_PIXEL)
    return Measured(
        value=f"{faster[small]:.1f} times faster, {less[small]:.1f} times less memory",
        held=faster[small] >= 3 and less[small] >= 5,
        detail=f"{large}: {faster[large]:.1f} times faster, {less[large]:.1f} times less memory; "
        + ", ".join(f"{name} {1e3 * times.median_s[name]:.0f} ms and {memory[name] / 2**20:.0f} MiB" for name in runs),
    )


@claim(
    "halonet",
    name="attention_downsampling",
    grade="ratio",
    statement="Attention downsampling takes a quarter of the operations of attention and pooling",
    where="attention downsampling",
    criterion="the layer on 64 x 64 positions of 64 channels, 4 heads, b = 8, h = 3, without gradients: time with "
    "strided queries <= 0.5 times that with attention at all positions and 2 x 2 averages, medians of one run",
)
def attention_downsampling() -> Measured:
    """Projections included, which only the queries' shrink; one thread, float32."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_heads": HEADS, "block_size": BLOCK, "halo_size": HALO, "stride": 2}
    layers = {"strided": HaloAttention(CHANNELS, **sizes), "pooled": HaloAttention(CHANNELS, avg_down=True, **sizes)}
    x = torch.randn(1, CHANNELS, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    with one_thread(), torch.no_grad():
        times = race({name: partial(layer, x) for name, layer in layers.items()}, rounds=31)
        counts = {name: contraction_macs(partial(layer, x)) for name, layer in layers.items()}
    ratio = times.ratio("strided", "pooled")
    return Measured(
        value=f"{ratio:.2f} times the time",
        held=ratio <= 0.5,
        detail=f"{1e3 * times.median_s['strided']:.1f} against {1e3 * times.median_s['pooled']:.1f} ms; all "
        f"contractions {counts['strided'] / counts['pooled']:.2f}",
    )


# --------------------------------------------------------------------------------------------------- scaled


def _compare(images: Images, config: HaloNetConfig) -> Measured:
    """With a halo and without; the counts of all parameters but tables must be equal."""
    found = accuracies(images, config)
    counts = [
        {name: count for name, count in _parameters(replace(config, halo_size=size)).items() if "_table" not in name}
        for size in found
    ]
    with_halo, without = (found[size] for size in HALOS)
    return Measured(
        value=f"{with_halo:.2f} % with a halo, {without:.2f} % without",
        held=with_halo > without and counts[0] == counts[1],
        detail=f"{sum(counts[0].values()):,} parameters besides the tables",
    )


@claim(
    "halonet",
    name="halo_on_digits",
    grade="scaled",
    statement="A halo around the blocks gains accuracy over blocks alone",
    where="experiments on window and halo sizes",
    criterion="mean accuracy with halos of 2 above that without, parameters equal but for the tables: digits of 16 x "
    f"16, two stages of two blocks of width 32 and 64, b = 4, 3x3 stem without stride, {RECIPE}",
)
def halo_on_digits() -> Measured:
    """The stem, and the second stage's coarser blocks, let some through without a halo, too."""
    return _compare(larger_digits(), HaloNet.SMALL)


@claim(
    "halonet",
    name="halo_across_borders",
    grade="scaled",
    statement="A halo lets a block see beyond its border",
    where="blocked local attention with haloing",
    criterion="mean accuracy with halos of 2 above that without, parameters equal but for the tables: images of 16 x "
    "16 with two marks on both sides of a border, whose signs are equal or not; one stage of two blocks of width 32, "
    f"b = 4, {RECIPE}",
)
def halo_across_borders() -> Measured:
    """Without a halo nothing in the network sees both marks."""
    return _compare(
        pairs(),
        replace(HaloNet.SMALL, num_classes=2, blocks=("hh",), widths=(32,), out_channels=(32,), num_heads=(2,)),
    )


# --------------------------------------------------------------------------------------------------- out of reach

out_of_reach(
    "halonet",
    name="imagenet",
    statement="HaloNets reach the best accuracy per parameter on ImageNet",
    where="experiments",
    criterion="top-1 accuracy of H0 to H7 on ImageNet, trained for 350 epochs, above EfficientNets of equal size",
    reason="350 epochs on ImageNet take accelerators for days; halo_on_digits stands in at small scale, and timm's "
    "trained hybrids load through load_reference, whose scores equal timm's",
)
out_of_reach(
    "halonet",
    name="transfer",
    statement="Trained on ImageNet-21K, a HaloNet outperforms much larger models and is faster",
    where="experiments on transfer",
    criterion="top-1 accuracy on ImageNet after training on ImageNet-21K above that of larger models",
    reason="ImageNet-21K has 14 million images; the network's cost, and timm's trained hybrids, are what is checked",
)
out_of_reach(
    "halonet",
    name="detection",
    statement="Hybrids of halo attention and convolutions improve detection and instance segmentation",
    where="experiments on detection",
    criterion="AP of Mask R-CNN on COCO with halo attention in the last stages above that with ResNet-50",
    reason="training detectors on COCO takes accelerators for days; features() of the hybrids is what is checked",
)
