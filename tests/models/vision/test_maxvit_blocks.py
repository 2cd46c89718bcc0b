"""MaxViT's block as a chain of its parts, in both orders of memory, and its layout."""

from __future__ import annotations

import pytest
import torch

from regard.models.vision.maxvit import MaxViTConfig, block_of
from regard.models.vision.maxvit_blocks import AttentionBlock

CONFIG = MaxViTConfig(
    stem_channels=3, dims=(6,), depths=(1,), strides=(2,), window_size=2, head_dim=3, expand_ratio=2, mlp_ratio=2.0
)


def normed(block: AttentionBlock, norm: torch.nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """Over the channels of a position."""
    centred = x - x.mean(dim=1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def perceptron(block: AttentionBlock, x: torch.Tensor) -> torch.Tensor:
    inner = torch.einsum("bcyx,dc->bdyx", x, block.mlp.up_proj.weight) + block.mlp.up_proj.bias[:, None, None]
    inner = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
    return torch.einsum("bcyx,dc->bdyx", inner, block.mlp.down_proj.weight) + block.mlp.down_proj.bias[:, None, None]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_is_a_chain_of_parts(order: torch.memory_format) -> None:
    block = block_of(CONFIG, 0, first=True, drop_path=0.0).double().eval()
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64).contiguous(memory_format=order)
    y = block.conv(x)
    for part in block.attention:
        y = y + part.mixer(normed(part, part.mixer_norm, y))
        y = y + perceptron(part, normed(part, part.mlp_norm, y))
    torch.testing.assert_close(block(x), y)
    assert [type(part.mixer).layout for part in block.attention] == ["window", "grid"]


def test_without_a_mixer_the_perceptron_remains() -> None:
    block = AttentionBlock(None, channels=4, hidden=8).double()
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), x + perceptron(block, normed(block, block.mlp_norm, x)))


def test_later_blocks_keep_size_and_width() -> None:
    block = block_of(CONFIG, 0, first=False, drop_path=0.0)
    assert block.conv.shortcut_conv is None
    assert block(torch.randn(1, 6, 4, 5)).shape == (1, 6, 4, 5)


def test_loads_the_authors_variables_with_or_without_the_blocks_name() -> None:
    block = block_of(CONFIG, 0, first=True, drop_path=0.0)
    shapes = {
        "mbconv/shortcut_conv": {"kernel": (1, 1, 3, 6), "bias": (6,)},
        "mbconv/expand_conv": {"kernel": (1, 1, 3, 12)},
        "mbconv/depthwise_conv": {"depthwise_kernel": (3, 3, 12, 1)},
        "mbconv/se/reduce_conv2d": {"kernel": (1, 1, 12, 1), "bias": (1,)},
        "mbconv/se/expand_conv2d": {"kernel": (1, 1, 1, 12), "bias": (12,)},
        "mbconv/shrink_conv": {"kernel": (1, 1, 12, 6), "bias": (6,)},
    }
    for norm, width in (("pre_norm", 3), ("expand_norm", 12), ("depthwise_norm", 12)):
        leaves = ("gamma", "beta", "moving_mean", "moving_variance")
        shapes[f"mbconv/{norm}"] = dict.fromkeys(leaves, (width,))
    for second in ("", "_1"):
        for letter in "qkv":
            shapes[f"attention{second}/{letter}"] = {"weight": (6, 2, 3), "bias": (2, 3)}
        shapes[f"attention{second}/o"] = {"weight": (2, 3, 6), "bias": (6,)}
        shapes[f"attention{second}"] = {"relative_bias": (2, 3, 3)}
        shapes[f"attn_layer_norm{second}"] = shapes[f"ffn_layer_norm{second}"] = {"gamma": (6,), "beta": (6,)}
        shapes[f"ffn{second}/expand_dense"] = {"weight": (6, 12), "bias": (12,)}
        shapes[f"ffn{second}/shrink_dense"] = {"weight": (12, 6), "bias": (6,)}
    layout = {
        f"{layer}/{leaf}": torch.rand(shape) for layer, leaves in shapes.items() for leaf, shape in leaves.items()
    }
    block.load_reference({f"block_03_01/{name}": tensor for name, tensor in layout.items()})
    expected = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    assert torch.equal(expected["conv.gate.up_proj.weight"][:, 0], layout["mbconv/se/expand_conv2d/kernel"][0, 0, 0])
    assert torch.equal(expected["attention.1.mixer.qkv.bias"][6:12], layout["attention_1/k/bias"].flatten())
    block.load_reference(layout)
    for name, tensor in block.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    with pytest.raises(KeyError, match=r"missing keys: attention\.1\.mlp_norm\.weight"):
        block.load_reference({name: each for name, each in layout.items() if name != "ffn_layer_norm_1/gamma"})
