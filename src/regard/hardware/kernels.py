"""What the library's own `softmax` and `lightning` compute and move on a CPU, kernel by kernel.

Counted from the code, with nothing fitted: every product, exponential, pass over a tensor and call of the forms that
are the default in float32 without gradients, causal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from regard.hardware.roofline import Kernel

FLOAT_BYTES = 4
BLOCK = 64
"""Tokens in a block of lightning attention in float32."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An attention layer.

    Args:
        tokens: length of the sequence.
        dim: width of the model.
        num_heads: number of heads.
        batch: rows.

    Raises:
        ValueError: a size that is not positive, or a width that the heads do not divide.
    """

    tokens: int
    dim: int
    num_heads: int
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("tokens", "dim", "num_heads", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads must divide dim, got dim={self.dim} and num_heads={self.num_heads}")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.num_heads

    @property
    def elements(self) -> int:
        """Of the layer's input."""
        return self.batch * self.tokens * self.dim


def linear(name: str, layer: Layer, inputs: int, outputs: int) -> Kernel:
    """A linear layer over all tokens."""
    rows = layer.batch * layer.tokens
    words = rows * (inputs + outputs) + inputs * outputs
    return Kernel(name=name, flops=2.0 * rows * inputs * outputs, moved_bytes=FLOAT_BYTES * words)


def passes_over(name: str, layer: Layer, *, tensors: int, exps: float = 0.0, element_ops: float = 1.0) -> Kernel:
    """An operation on every element of the layer's width: so many tensors read and written."""
    return Kernel(
        name=name,
        exps=exps * layer.elements,
        element_ops=element_ops * layer.elements,
        moved_bytes=float(FLOAT_BYTES * tensors * layer.elements),
    )


def softmax_kernels(layer: Layer) -> list[Kernel]:
    """Projections, and one fused kernel that keeps the scores in the cache; the future is skipped.

    The kernel's tiles have 256 queries and 512 keys (PyTorch, `FlashAttentionKernel.cpp`), whose products are as fast
    as large ones.
    """
    visible = layer.batch * layer.num_heads * layer.tokens * (layer.tokens + 1) / 2
    attention = Kernel(
        name="attention",
        flops=4.0 * visible * layer.head_dim,
        exps=visible,
        # scale and maximum; subtraction; sum
        element_ops=3 * visible,
        moved_bytes=float(FLOAT_BYTES * 4 * layer.elements),
    )
    projections = [linear(name, layer, layer.dim, layer.dim) for name in ("queries", "keys", "values")]
    merged = passes_over("merge heads", layer, tensors=2, element_ops=0)
    return [*projections, attention, merged, linear("output", layer, layer.dim, layer.dim)]


def lightning_kernels(layer: Layer) -> list[Kernel]:
    """Projections and activations, the blocks one after the other, norm, gate and output."""
    dim, width = layer.dim, layer.head_dim
    rows = layer.batch * layer.num_heads * layer.tokens
    blocks = -(-layer.tokens // BLOCK)
    states = layer.batch * layer.num_heads * width**2 * blocks
    scan = Kernel(
        name="blocks",
        # the first block has no state to read, and the last one writes none
        tile_flops=4.0 * rows * (BLOCK * width + width**2 * (blocks - 1) / blocks),
        # decay of scores, queries, keys and states, and the copies that products of strided tiles make
        element_ops=float(rows * BLOCK + 2 * rows * width + 2 * states + 3 * rows * width),
        moved_bytes=float(FLOAT_BYTES * 4 * layer.elements),
        calls=9 * blocks,
    )
    projections = [linear(name, layer, dim, dim) for name in ("queries", "keys", "values")]
    return [
        *projections,
        *(passes_over(f"activation of {name}", layer, tensors=2, exps=1) for name in ("queries", "keys", "values")),
        scan,
        passes_over("join blocks", layer, tensors=2, element_ops=0),
        passes_over("merge heads", layer, tensors=2, element_ops=0),
        passes_over("norm", layer, tensors=2, element_ops=4),
        linear("gate, down", layer, dim, width),
        linear("gate, up", layer, width, dim),
        passes_over("gate, sigmoid", layer, tensors=2, exps=1),
        passes_over("gate, product", layer, tensors=3),
        linear("output", layer, dim, dim),
    ]


KERNELS: dict[str, Callable[[Layer], list[Kernel]]] = {"softmax": softmax_kernels, "lightning": lightning_kernels}
"""By the mechanism's name."""
