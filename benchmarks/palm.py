"""PALM's layer through fused kernels, in two calls, against materialised attention and against one masked call."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from harness import Outcome, at_least, at_most
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.measure import race
from regard.models.language.lm_seq2seq import LMSeq2SeqConfig
from regard.models.language.palm_seq2seq import PALMSeq2Seq, PALMSeq2SeqConfig, palm_layer
from regard.models.language.seq2seq import Layout
from regard.models.language.seq2seq_blocks import Seq2SeqBlock
from regard.ops.heads import merge_heads
from regard.ops.prefix_visibility import prefix_visible

SIZES = {"dim": 256, "num_heads": 4, "mlp_dim": 512, "dropout": 0.0, "vocab_size": 100, "max_positions": 4096}
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def materialised(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(dim=-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    return sdpa(q, k, v, attn_mask=visible)


def one_map_layer(block: Seq2SeqBlock, x: Tensor, layout: Layout, visible: Tensor, attend: Attend) -> Tensor:
    """The same layer, its self-attention in one call under one map."""
    source = layout.source_positions.shape[1]
    places = torch.cat((layout.source_positions, layout.target_positions), dim=1)
    x = x + block.attention.o_proj(merge_heads(attend(*block.project(x, places), visible)))
    if block.reader is not None and block.reader_norm is not None:
        kept = block.reader.keys_values(x[:, :source], layout.source_positions)
        q = block.reader.queries(block.reader_norm(x), places)
        x = x + block.reader.o_proj(merge_heads(attend(q, *kept, None)))
    return x + block.feed_forward(block.feed_forward_norm(x))


def layers(source: int, target: int, *, training: bool) -> Iterator[Outcome]:
    torch.manual_seed(0)
    block = Seq2SeqBlock(PALMSeq2SeqConfig(**SIZES), reader="partial")
    plain = Seq2SeqBlock(LMSeq2SeqConfig(**SIZES), reader="nothing")
    x = torch.randn(1, source + target, SIZES["dim"], requires_grad=training)
    layout = Layout(None, torch.arange(source)[None], torch.arange(target)[None])
    visible = prefix_visible(source, target, device=x.device)
    upstream = torch.randn(1, source + target, SIZES["dim"])
    forms: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: palm_layer(block, x, layout),
        "materialised": lambda: one_map_layer(block, x, layout, visible, materialised),
        "one call": lambda: one_map_layer(block, x, layout, visible, fused),
        "prefix": lambda: one_map_layer(plain, x, layout, visible, fused),
    }
    torch.testing.assert_close(forms["ours"](), forms["materialised"](), rtol=1e-3, atol=1e-4)

    def runner(form: Callable[[], Tensor]) -> Callable[[], object]:
        return (lambda: torch.autograd.grad(form(), x, upstream)) if training else form

    with torch.set_grad_enabled(training):
        times = race({name: runner(form) for name, form in forms.items()}, rounds=7)
    what = (
        f"{'forward and backward' if training else 'forward'}, source {source}, target {target}, 4 heads of 64, float32"
    )
    size = f"{source}+{target}{' training' if training else ''}"
    yield at_least(
        f"palm layer {size}",
        f"materialised / ours, {what}",
        times.ratio("materialised", "ours"),
        1.0,
        detail=f"ours {times.median_s['ours'] * 1e3:.0f} ms",
    )
    yield at_most(
        f"palm two calls {size}", f"ours / one masked SDPA call, {what}", times.ratio("ours", "one call"), 1.0
    )
    yield at_most(
        f"palm prefix {size}",
        f"ours / a prefix language model's layer by SDPA, {what}",
        times.ratio("ours", "prefix"),
        2.0,
        detail="partial attention adds 6 dim^2 parameters to 8 dim^2, and a second attention",
    )


def decoding() -> Outcome:
    """A step against the whole sequence anew: what keeping the source's keys and values saves."""
    torch.manual_seed(0)
    model = PALMSeq2Seq(PALMSeq2SeqConfig(**SIZES, num_layers=2)).eval()
    source, target = torch.randint(0, 100, (1, 256)), torch.randint(0, 100, (1, 256))
    with torch.no_grad():
        _, state = model.step(target[:, :255], model.encode(source, max_len=300))
        times = race(
            {
                "anew": lambda: model(source, target),
                "step": lambda: model.step(target[:, 255:], state.clone()),
            },
            rounds=7,
        )
    what = "forward of 256 + 256 tokens / one step with the kept source, 2 layers of 256"
    return at_least("palm step", what, times.ratio("anew", "step"), 5.0)


def races() -> Iterator[Outcome]:
    for source, target in ((128, 384), (512, 512)):
        yield from layers(source, target, training=False)
        yield from layers(source, target, training=True)
    yield decoding()
