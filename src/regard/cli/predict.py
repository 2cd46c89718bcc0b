"""`regard predict`: result files from a checkpoint and the user's files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regard.cli.errors import UserError

if TYPE_CHECKING:
    from regard.tasks.checkpoint import Checkpoint
    from regard.tasks.task import Leaf, Sheet

EXAMPLES = """
  regard predict runs/etth1 latest.csv --out forecasts/
  regard predict runs/palm english.txt --out translations/
  regard predict runs/photos one.jpg folder_of_images/ --out answers/
  regard predict runs/agunet scan.nii.gz --out masks/ --probabilities
  regard predict runs/braintumor BraTS20_Validation_001/ --out masks/ --overlap 0.5
"""


def run(
    checkpoint: Path,
    inputs: list[Path],
    *,
    out: Path,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    image_size: int | None = None,
    on_bad_image: Literal["skip", "refuse"] | None = None,
    overlap: float | None = None,
    window_batch: int | None = None,
    threshold: float | None = None,
    probabilities: bool = False,
) -> int:
    """Write predictions for your files; what is written depends on the task: CSV, JSONL, text, a page of images, or
    masks in the voxels of each volume with a page for each.

    Args:
        checkpoint: a file that regard train wrote, or its folder.
        inputs: files in the format of the task.
        out: folder for the results; files of the same names in it are replaced, inputs never.
        device: where to run (default auto, a GPU if there is one).
        image_size: bring images to another number of pixels per side than in training, if the network takes them.
        on_bad_image: what becomes of image files that do not decode: skip (they are listed) or refuse; by default as in
            training.
        overlap: share of a window that the next has in common with it (segmentation; by default as in training).
        window_batch: windows or slices that the network sees at a time (segmentation; by default as in training).
        threshold: probability from which a voxel is in a region (segmentation; by default as in training).
        probabilities: write the probabilities beside the masks (segmentation).
    """
    from regard.cli.console import output
    from regard.cli.evaluate import chosen_device
    from regard.cli.task_options import apply_image_options, override_settings
    from regard.cli.window_progress import watching
    from regard.files import folder_for
    from regard.tasks import checkpoint as checkpoints
    from regard.wording import shown

    for path in inputs:
        if not path.exists():
            raise UserError(f"there is no file {shown(path)}")
    loaded = checkpoints.load(checkpoint)
    console = output()
    loaded.model.to(chosen_device(device))
    apply_image_options(loaded, image_size=image_size, on_bad_image=on_bad_image)
    of_masks = {"overlap": overlap, "window_batch": window_batch, "threshold": threshold}
    override_settings(loaded.task, of_masks | {"probabilities": probabilities or None})
    try:
        with folder_for(out), watching(loaded.task, f"predicting {len(inputs)} files"):
            written = _predict(loaded, inputs, out)
    except OSError as error:
        raise UserError(f"cannot write in {shown(out)}: {error.strerror or error}") from None
    for name, why in loaded.task.bad:
        console.print(f"skipped: {name} {why}", soft_wrap=True)
    for path in written:
        console.print(str(path), soft_wrap=True)
    return 0


def _predict(loaded: Checkpoint, inputs: list[Path], out: Path) -> list[Path]:
    """Predict into a folder inside `out`, and move the results once all are there and none takes an input's place.

    Raises:
        UserError: a result would replace an input, or another result.
    """
    from regard.wording import shown

    given = [path.resolve() for path in inputs]
    with tempfile.TemporaryDirectory(dir=out, prefix=".predicting-") as folder:
        made = loaded.task.predict(loaded.model, inputs, Path(folder))
        if loaded.task.sheet is not None:
            made.append(_write_sheet(loaded, loaded.task.sheet, Path(folder)))
        made += [_write_leaf(loaded, leaf, Path(folder)) for leaf in loaded.task.leaves]
        targets = [out / path.name for path in made]
        for number, target in enumerate(targets):
            whole = target.resolve()
            if target.exists() and any(whole == path or path in whole.parents for path in given):
                raise UserError(f"{shown(target)} is one of the inputs: name another --out")
            if target in targets[:number]:
                raise UserError(f"two inputs would both become {shown(target)}: predict them into different folders")
        for path, target in zip(made, targets, strict=True):
            os.replace(path, target)
    return targets


def _write_sheet(loaded: Checkpoint, sheet: Sheet, folder: Path) -> Path:
    from regard.cli.records import command
    from regard.report.contact_sheet import Picture, SheetRecord, write_contact_sheet
    from regard.tasks.outcome import settings_rows

    record = SheetRecord(
        title=f"Predictions of {loaded.header.model}",
        command=command(),
        pictures=[Picture(found.name, found.thumbnail, found.answers, found.overlay) for found in sheet.inputs],
        bad=sheet.bad,
        total=sheet.total,
        counts=sheet.counts,
        facts=settings_rows(network=loaded.model.config, data=loaded.task.settings),
    )
    write_contact_sheet(record, folder / "predictions.html")
    return folder / "predictions.html"


def _write_leaf(loaded: Checkpoint, leaf: Leaf, folder: Path) -> Path:
    from regard.cli.records import command
    from regard.report.views import VolumeRecord, write_volume_page
    from regard.tasks.outcome import settings_rows

    record = VolumeRecord(
        title=f"{leaf.title}, predicted by {loaded.header.model}",
        command=command(),
        pictures=[(picture.title, picture.png) for picture in leaf.pictures],
        legend=leaf.legend,
        header=leaf.header,
        rows=leaf.rows,
        notes=leaf.notes,
        facts=settings_rows(network=loaded.model.config, data=loaded.task.settings),
    )
    write_volume_page(record, folder / f"{leaf.name}.html")
    return folder / f"{leaf.name}.html"
