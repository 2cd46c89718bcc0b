"""`regard export`: a trained network as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from regard.cli.errors import UserError, writable_file

EXAMPLES = """
  regard export runs/photos --format onnx --out photos.onnx
  regard export runs/photos/model.safetensors --format torch-export --out photos.pt2
  regard export runs/photos --image-size 256
  regard export runs/words --format transformers --out models/words
"""


def run(
    checkpoint: Path,
    *,
    format: Literal["onnx", "torch-export", "transformers"] = "onnx",
    out: Path | None = None,
    image_size: int | None = None,
) -> int:
    """Write a trained network for other programs, and compare its scores there with its own on random inputs.

    The number of rows stays free. Classes, statistics and sizes are in the file too: in ONNX's metadata under
    "regard", in an exported program as the extra file regard.json.

    Args:
        checkpoint: a file that regard train wrote, or its folder.
        format: onnx (needs the extra "export"), torch-export, PyTorch's own, or transformers, for a language model
            with softmax attention (decoder_lm): a folder that Hugging Face's AutoModelForCausalLM loads.
        out: the file to write (default model.onnx or model.pt2 beside the checkpoint), or the folder (transformers).
        image_size: pixels per side of its images, if not those of training; the network must take them.
    """
    if format == "transformers":
        if image_size is not None:
            raise UserError("--image-size belongs to image networks, and transformers takes a language model")
        return _save_for_transformers(checkpoint, out)
    from regard.cli.console import output, progress
    from regard.cli.task_options import apply_image_options
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


def _save_for_transformers(checkpoint: Path, out: Path | None) -> int:
    from regard.cli.console import output
    from regard.cli.errors import need
    from regard.models.language.decoder import Decoder
    from regard.tasks import checkpoint as checkpoints
    from regard.tasks.language import Language
    from regard.wording import shown

    need("transformers", extra="hf", command="export --format transformers")
    from regard.integrations.transformers.saving import save_decoder

    folder = out if out is not None else (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "transformers"
    if folder.exists():
        raise UserError(f"{shown(folder)} is there already: name a new folder with --out")
    loaded = checkpoints.load(checkpoint)
    task, model = loaded.task, loaded.model
    if not isinstance(task, Language) or not isinstance(model, Decoder):
        raise UserError(f"{loaded.header.model} has no layout in transformers: decoder_lm with softmax attention has")
    assert task.tokenizer is not None, "a trained language model has its tokenizer"
    try:
        error = save_decoder(model, task.tokenizer, folder, length=task.settings.length)
    except OSError as reason:
        raise UserError(f"cannot write {shown(folder)}: {reason.strerror or reason}") from None
    console = output()
    console.print(f"largest difference of scores on random tokens {error:.2g}")
    console.print(shown(folder, 1000), soft_wrap=True)
    return 0
