"""See: what attends to what, for a mechanism that never computes a square of weights.

Run: python examples/see.py [OUTPUT.png]
"""

from __future__ import annotations

import sys

import torch
from matplotlib.figure import Figure

import regard


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 40, 48)
    names = ["softmax", "lightning", "hedgehog", "aaren"]
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        mixer = regard.create(name, dim=48, num_heads=4, causal=True)
        with torch.no_grad():
            shown = mixer.attention_map(x)[0, 0]
        limit = float(shown.abs().max())
        axes.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_title(name)
    target = sys.argv[1] if len(sys.argv) > 1 else "attention_maps.png"
    figure.savefig(target)
    print(target)


if __name__ == "__main__":
    main()
