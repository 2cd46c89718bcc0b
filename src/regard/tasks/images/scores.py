"""What classification is measured by: top-1, top-5, loss and calibration as sums; confusion and accuracy by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.tasks.task import Extras, HeatMap

TOP = 5
BINS = 15
LARGEST_TABLE = 20
"""Classes of a confusion matrix that is shown as a table."""
LARGEST_MAP = 200
"""Classes of a confusion matrix that is shown as a heat map; of more, those with the most mistakes are shown."""
MOST_CONFUSED = 100


def sums(scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What adds up over batches.

    Args:
        scores: `(images, classes)` before the softmax.
        labels: `(images,)` true classes.
    """
    found = {
        "right": (scores.argmax(dim=1) == labels).sum(),
        "nats": F.cross_entropy(scores, labels, reduction="sum"),
        "images": torch.tensor(len(labels)),
    }
    if scores.shape[1] > TOP:
        found["right_in_top"] = (scores.topk(TOP, dim=1).indices == labels[:, None]).any(dim=1).sum()
    for name, values in zip(("count", "confidence", "right"), by_confidence(scores, labels), strict=True):
        found |= {f"bin_{name}_{index}": value for index, value in enumerate(values)}
    return found


def by_confidence(scores: Tensor, labels: Tensor) -> Tensor:
    """`(3, bins)`: images, the sum of their confidences, and right answers, by the confidence of the answer."""
    confidence, answers = scores.softmax(dim=1).max(dim=1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    member = F.one_hot(bins, BINS).to(scores.dtype)
    rows = torch.stack([torch.ones_like(confidence), confidence, (answers == labels).to(scores.dtype)])
    return rows @ member


def metrics(found: Mapping[str, float]) -> dict[str, float]:
    """Accuracy, mean loss and the expected calibration error, from sums over all batches.

    The calibration error is the mean distance of confidence and accuracy over 15 bins of equal width, weighted by
    their images: Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599, equation 3.
    """
    images = found["images"]
    apart = sum(abs(found[f"bin_confidence_{index}"] - found[f"bin_right_{index}"]) for index in range(BINS))
    result = {"accuracy": found["right"] / images}
    if "right_in_top" in found:
        result["top5_accuracy"] = found["right_in_top"] / images
    return result | {"loss": found["nats"] / images, "calibration_error": apart / images}


@dataclass
class Confusion:
    """Counts of answers by true class, and calibration, over the batches of a part.

    Args:
        classes: names by number.
    """

    classes: Sequence[str]
    counts: Tensor = field(init=False)
    bins: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)
        self.bins = torch.zeros(3, BINS)

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch, on the CPU."""
        size = len(self.classes)
        pairs = labels * size + scores.argmax(dim=1)
        self.counts += torch.bincount(pairs, minlength=size * size).reshape(size, size)
        self.bins += by_confidence(scores, labels)

    def extras(self, part: str) -> Extras:
        """Tables, the reliability line, and a heat map where there are too many classes for a table."""
        few = len(self.classes) <= LARGEST_TABLE
        tables = [self._matrix(part)] if few else []
        return Extras(
            tables=(*tables, self._by_class(part), self._calibration(part)),
            lines=(self._reliability(part),),
            heat_maps=() if few else (self._map(part),),
        )

    def _matrix(self, part: str) -> tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]]:
        rows = tuple((name, *map(str, line.tolist())) for name, line in zip(self.classes, self.counts, strict=True))
        return f"Confusion on {part}: rows are true classes", ("class", *self.classes), rows

    def _by_class(self, part: str) -> tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]]:
        rows = []
        for number, name in enumerate(self.classes):
            line, column = self.counts[number].clone(), self.counts[:, number]
            of_class, answered, right = int(line.sum()), int(column.sum()), int(line[number])
            line[number] = 0
            mistaken = self.classes[int(line.argmax())] if int(line.sum()) else "-"
            recall = f"{100 * right / of_class:.1f} %" if of_class else "-"
            precision = f"{100 * right / answered:.1f} %" if answered else "-"
            rows.append((name, str(of_class), recall, precision, mistaken))
        header = ("class", "images", "accuracy", "right when answered", "most often mistaken for")
        return f"Accuracy by class on {part}", header, tuple(rows)

    def _calibration(self, part: str) -> tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]]:
        rows = [
            (f"{index / BINS:.2f} to {(index + 1) / BINS:.2f}", f"{count:.0f}", f"{mean:.3f}", f"{right:.3f}")
            for index, count, mean, right in self._filled()
        ]
        return f"Calibration on {part}", ("confidence", "images", "mean confidence", "accuracy"), tuple(rows)

    def _filled(self) -> list[tuple[int, float, float, float]]:
        found = []
        for index, (count, confidence, right) in enumerate(self.bins.T.tolist()):
            if count:
                found.append((index, count, confidence / count, right / count))
        return found

    def _reliability(self, part: str) -> tuple[str, str, str, dict[str, list[tuple[float, float]]]]:
        points = [(mean, right) for _, _, mean, right in self._filled()]
        series = {"the network": points, "perfect calibration": [(0.0, 0.0), (1.0, 1.0)]}
        return f"Reliability on {part}", "mean confidence", "accuracy", series

    def _map(self, part: str) -> HeatMap:
        chosen = torch.arange(len(self.classes))
        title = f"Confusion on {part}"
        if len(self.classes) > LARGEST_MAP:
            mistakes = self.counts.sum(dim=1) - self.counts.diagonal()
            chosen = mistakes.argsort(descending=True, stable=True)[:MOST_CONFUSED].sort().values
            title += f", the {MOST_CONFUSED} classes with the most mistakes"
        shares = self.counts[chosen][:, chosen] / self.counts[chosen].sum(dim=1, keepdim=True).clamp(min=1)
        return HeatMap(
            title=title,
            x_label="answer",
            y_label="true class",
            names=tuple(self.classes[number] for number in chosen.tolist()),
            values=tuple(tuple(round(value, 4) for value in line) for line in shares.tolist()),
            what="share of the class",
        )
