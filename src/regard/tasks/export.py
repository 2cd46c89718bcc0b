"""A trained network as a file that other programs run: ONNX, or PyTorch's exported program; checked on random inputs.

Both keep the number of rows free, and hold what the network's user must know (classes, statistics, sizes) as JSON under
the name `regard`.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regard.errors import UserError
from regard.tasks.checkpoint import Checkpoint
from regard.tasks.networks import config_to_plain
from regard.wording import shown

Format = Literal["onnx", "torch-export"]
SUFFIX: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
ROWS = (1, 2, 5)
"""Sizes of the batches that the file is checked with."""
TRACED_ROWS = 3
"""Rows of the example: one that no network knows as a size of its own."""
TOLERANCE = 1e-3
"""Largest error over the largest score."""
KEY = "regard"
WHOLE_BYTES = 2**31 - 2**20
"""Beyond this size an ONNX file keeps its weights in a second file beside it."""

Run = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        files: the file, and one beside it for weights that are too large for it.
        inputs: shapes of the inputs by name, the rows as 0.
        scores: shape of the output, the rows as 0.
        error: largest difference from the network's own scores.
        largest: the largest score.
    """

    files: tuple[Path, ...]
    inputs: Mapping[str, tuple[int, ...]]
    scores: tuple[int, ...]
    error: float
    largest: float


def need_exporter(kind: Format) -> None:
    """Refuse ONNX where its libraries are not installed.

    Raises:
        UserError: says how to install them.
    """
    for module in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else ():
        if find_spec(module) is None:
            raise UserError(f"ONNX needs {module}: pip install 'regard[export]'")


def export(loaded: Checkpoint, path: Path, kind: Format) -> Exported:
    """Write the network of a checkpoint and compare the file's scores with its own.

    Args:
        loaded: the checkpoint.
        path: the file; its folder must exist.
        kind: of the file.

    Raises:
        UserError: libraries are missing, the network cannot be exported, or its file gives other scores.
        OSError: it cannot be written.
    """
    need_exporter(kind)
    model = loaded.model.float().cpu().eval()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".exporting-") as folder:
        made = Path(folder, path.name)
        shape, error, largest = _write_and_compare(loaded, model, made, kind)
        if not error <= TOLERANCE * largest:
            raise UserError(
                f"{loaded.header.model} gives other scores after its export to {kind}: they differ by {error:.2g}, and "
                f"the largest is {largest:.3g}; nothing was written"
            )
        files = sorted(Path(folder).iterdir(), key=lambda file: file != made)
        for file in files:
            os.replace(file, path.parent / file.name)
    shapes = {name: (0, *tensor.shape[1:]) for name, tensor in loaded.task.example(1).items()}
    return Exported(tuple(path.parent / file.name for file in files), shapes, shape, error, largest)


def _write_and_compare(
    loaded: Checkpoint, model: nn.Module, path: Path, kind: Format
) -> tuple[tuple[int, ...], float, float]:
    write, load = _WAYS[kind]
    try:
        with _quiet():
            write(model, loaded.task.example(TRACED_ROWS), path, _described(loaded))
            return _compare(loaded, model, load(path))
    except (OSError, UserError):
        raise
    except Exception as reason:
        # exporters and runtimes raise types of their own, which have nothing in common
        told = shown(str(reason).strip().partition("\n")[0], 300) or type(reason).__name__
        raise UserError(f"{loaded.header.model} cannot be exported to {kind}: {told}") from None


@torch.no_grad()
def _compare(loaded: Checkpoint, model: nn.Module, run: Run) -> tuple[tuple[int, ...], float, float]:
    """The shape of the scores, their largest error, and the largest of them."""
    errors, sizes = [], []
    shape: tuple[int, ...] = ()
    for rows in ROWS:
        inputs = loaded.task.example(rows)
        own, other = model(*inputs.values()), run(inputs)
        if own.shape != other.shape:
            raise ValueError(f"its scores have shape {tuple(other.shape)}, not {tuple(own.shape)}")
        shape = (0, *own.shape[1:])
        errors.append((own - other).abs().max())
        sizes.append(own.abs().max())
    # the largest of tensors is NaN where one of them is
    return shape, float(torch.stack(errors).max()), float(torch.stack(sizes).max())


def _described(loaded: Checkpoint) -> str:
    header = loaded.header
    return json.dumps(
        {
            "model": header.model,
            "task": header.task,
            "config": config_to_plain(loaded.model.config),
            "settings": config_to_plain(loaded.task.settings),
            "facts": loaded.task.facts(),
            "version": header.version,
        }
    )


def _exported(model: nn.Module, inputs: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    rows = torch.export.Dim("rows", min=1)
    shapes = tuple({0: rows} for _ in inputs)
    with torch.no_grad():
        return torch.export.export(model, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)


def _write_program(model: nn.Module, inputs: Mapping[str, Tensor], path: Path, described: str) -> None:
    torch.export.save(_exported(model, inputs), path, extra_files={f"{KEY}.json": described})


def _load_program(path: Path) -> Run:
    program = torch.export.load(path).module()
    return lambda inputs: program(*inputs.values())


def _write_onnx(model: nn.Module, inputs: Mapping[str, Tensor], path: Path, described: str) -> None:
    program: Any = torch.onnx.export(
        _exported(model, inputs), input_names=list(inputs), output_names=["scores"], dynamo=True, verbose=False
    )
    program.model.metadata_props[KEY] = described
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    program.save(str(path), external_data=size > WHOLE_BYTES)


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(
        session.run(["scores"], {name: tensor.numpy() for name, tensor in inputs.items()})[0]
    )


_WAYS: dict[Format, tuple[Callable[[nn.Module, Mapping[str, Tensor], Path, str], None], Callable[[Path], Run]]] = {
    "onnx": (_write_onnx, _load_onnx),
    "torch-export": (_write_program, _load_program),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' advice and progress."""
    import contextlib
    import io
    import logging

    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
