"""`regard export`: a trained network as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from regard.cli.errors import UserError, writable_file

EXAMPLES = """
  regard export runs/photos --format onnx --out photos.onnx
  regard export runs/photos/model.safetensors --format torch-export --out photos.pt2
  regard export runs/photos --image-size 256
"""


def run(
    checkpoint: Path,
    *,
    format: Literal["onnx", "torch-export"] = "onnx",
    out: Path | None = None,
    image_size: int | None = None,
) -> int:
    """Write a trained network for other programs, and compare its scores there with its own on random inputs.

    The number of rows stays free. Classes, statistics and sizes are in the file too: in ONNX's metadata under
    "regard", in an exported program as the extra file regard.json.

    Args:
        checkpoint: a file that regard train wrote, or its folder.
        format: onnx (needs the extra "export"), or torch-export, PyTorch's own.
        out: the file to write (default model.onnx or model.pt2 beside the checkpoint).
        image_size: pixels per side of its images, if not those of training; the network must take them.
    """
    from regard.cli.console import output, progress
    from regard.cli.image_options import apply_image_options
    from regard.tasks import checkpoint as checkpoints
    from regard.tasks.export import SUFFIX, export, need_exporter
    from regard.wording import bytes_in_words, shown

    need_exporter(format)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    out = out if out is not None else folder / f"model{SUFFIX[format]}"
    writable_file(out)
    if out.exists() and checkpoint.exists() and out.resolve() == checkpoint.resolve():
        raise UserError(f"--out {shown(out)} is the checkpoint itself: name another file")
    loaded = checkpoints.load(checkpoint)
    apply_image_options(loaded, image_size=image_size)
    try:
        with progress().status(f"exporting to {format}"):
            made = export(loaded, out, format)
    except OSError as error:
        raise UserError(f"cannot write {shown(out)}: {error.strerror or error}") from None
    console = output()
    for name, shape in (*made.inputs.items(), ("scores", made.scores)):
        kind = "input" if name in made.inputs else "output"
        console.print(f"{kind} {name} ({', '.join(['rows', *map(str, shape[1:])])})")
    console.print(f"largest error on random inputs {made.error:.2g}, of scores up to {made.largest:.3g}")
    for path in made.files:
        console.print(f"{path} ({bytes_in_words(path.stat().st_size)})", soft_wrap=True)
    return 0
