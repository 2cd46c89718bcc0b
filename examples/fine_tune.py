"""Fine-tune: a trained image network on your own folder of images, first its classifier alone, then all of it.

Run: python examples/fine_tune.py [FOLDER [WEIGHTS]]

FOLDER has a sub-folder of images per class; without one the odd and even digits of scikit-learn become such a folder.
WEIGHTS is a run's folder or a published file for `shvit`; without one a small network is trained on the digits first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from regard.tasks.fit import Hardware
from regard.tasks.runs import Wishes, plan, train


def odd_and_even(folder: Path) -> Path:
    """The digits as image files, in two classes."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / ("odd" if label % 2 else "even")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype("uint8")).save(place / f"{number:04}.png")
    return folder


def run(out: Path, data: Path | None, weights: str | None, **recipe: float | str) -> None:
    """One run: the files are decoded, the network starts from the weights, and the best checkpoint is kept."""
    settings = {"image_size": "8", "patch_size": "4"} if weights is None else {}
    wishes = Wishes(
        system="shvit",
        task="classification",
        data=None if data is None else str(data),
        settings=settings,
        recipe=recipe,
        pretrained=weights,
    )
    planned = plan(wishes)
    print(planned.task.described)
    out.mkdir(parents=True)
    outcome = train(planned, out, Hardware(progress=False), resume=False)
    print(f"  accuracy on the validation part: {100 * (outcome.progress.best or 0):.1f} %")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = Path(sys.argv[1]) if len(sys.argv) > 1 else odd_and_even(folder / "digits")
        weights = sys.argv[2] if len(sys.argv) > 2 else str(folder / "first")
        if len(sys.argv) < 3:
            run(folder / "first", None, None, steps=200)
        run(folder / "head", data, weights, steps=100, freeze="body")
        run(folder / "whole", data, str(folder / "head"), steps=100, learning_rate=5e-4, layer_decay=0.8)


if __name__ == "__main__":
    main()
