"""Use: a mechanism by name in a model of your own; padding, decoding and packed sequences.

Run: python examples/use.py
"""

from __future__ import annotations

import torch
from torch import nn

import regard


class Block(nn.Module):
    """A pre-norm block around any sequence mixer."""

    def __init__(self, name: str, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = regard.create(name, dim=dim, num_heads=num_heads, causal=True)

    def forward(self, x: torch.Tensor, **where: torch.Tensor) -> torch.Tensor:
        return x + self.mixer(self.norm(x), **where)


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 50, 32)
    for name, entry in regard.systems("sequence").items():
        assert entry.traits is not None
        if not entry.traits.causal:
            continue
        block = Block(name, dim=32, num_heads=4).eval()
        with torch.no_grad():
            plain = block.mixer(x)
            real = torch.ones(2, 57, dtype=torch.bool)
            real[:, :7] = False
            padded = block.mixer(torch.cat((torch.randn(2, 7, 32), x), dim=1), mask=real)[:, 7:]
            line = f"{name:16s} padded = unpadded to {(padded - plain).abs().max():.1e}"
            if entry.traits.decodes:
                state = block.mixer.init_state(2, max_len=50)
                prompt, state = block.mixer.step(x[:, :49], state)
                last, state = block.mixer.step(x[:, 49:], state)
                error = (torch.cat((prompt, last), dim=1) - plain).abs().max()
                line += f", decoded = whole to {error:.1e}, state of {state.nbytes} bytes"
        print(line)


if __name__ == "__main__":
    main()
