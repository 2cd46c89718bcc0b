"""What medical classification is measured by: sensitivity, predictive value and the area under the ROC curve.

Sums over batches add up, which an area does not: the scores of every class are therefore counted in narrow bins, and
the area is that of the counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard.tasks.images import scores as of_images

BINS, LIMIT = 400, 20.0
"""Bins between the log-odds -20 and 20: scores that are a tenth apart are told from each other."""


def log_odds(scores: Tensor) -> Tensor:
    """log(p / (1 - p)) for the probability of every class, from `(images, classes)` scores before the softmax."""
    others = torch.stack(
        [
            torch.cat((scores[:, :number], scores[:, number + 1 :]), dim=1).logsumexp(dim=1)
            for number in range(scores.shape[1])
        ],
        dim=1,
    )
    return scores - others


def sums(scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What adds up over batches: as for all images, with counts of answers and of binned scores.

    Args:
        scores: `(images, classes)` before the softmax.
        labels: `(images,)` true classes.
    """
    found = of_images.sums(scores, labels)
    classes = scores.shape[1]
    answers = torch.bincount(labels * classes + scores.argmax(dim=1), minlength=classes**2)
    found |= {f"answer_{index}": count for index, count in enumerate(answers)}
    bins = ((log_odds(scores) / LIMIT + 1) * (BINS / 2)).nan_to_num(0.0).long().clamp(0, BINS - 1)
    for number in range(classes):
        keys = (labels == number) * BINS + bins[:, number]
        counts = torch.bincount(keys, minlength=2 * BINS)
        # most are empty, and what is left out is 0
        found |= {f"score_{number}_{key}": counts[key] for key in counts.nonzero().flatten().tolist()}
    return found


def metrics(found: Mapping[str, float], classes: Sequence[str]) -> dict[str, float]:
    """Accuracy, area under the ROC curve, sensitivity and predictive value of each class, and as for all images.

    Args:
        found: sums over all batches.
        classes: names by number.
    """
    size = len(classes)
    counts = np.array([found[f"answer_{index}"] for index in range(size**2)]).reshape(size, size)
    result = of_images.metrics(found)
    result["auc"] = _area(found, size)
    for number, name in enumerate(classes):
        right = counts[number, number]
        result[f"sensitivity {name}"] = _share(right, counts[number].sum())
        result[f"PPV {name}"] = _share(right, counts[:, number].sum())
    return result


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _area(found: Mapping[str, float], classes: int) -> float:
    """The mean over all classes against the rest that have images on both sides; of two classes both are the same."""
    areas = list(_areas(found, classes))
    return float(np.mean(areas)) if areas else float("nan")


def _areas(found: Mapping[str, float], classes: int) -> Iterator[float]:
    from sklearn.metrics import roc_auc_score

    for number in range(classes):
        counts: NDArray[np.float64] = np.array([found.get(f"score_{number}_{key}", 0.0) for key in range(2 * BINS)])
        if counts[:BINS].sum() and counts[BINS:].sum():
            kept = counts > 0
            truth, bins = np.repeat([0, 1], BINS)[kept], np.tile(np.arange(BINS), 2)[kept]
            yield float(roc_auc_score(truth, bins, sample_weight=counts[kept]))


def roc_points(log_odds_of_class: NDArray[np.float64], is_class: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """False and true positives as shares, over all thresholds; none where a side has no images."""
    from sklearn.metrics import roc_curve

    if is_class.all() or not is_class.any():
        return []
    false, true, _ = roc_curve(is_class, log_odds_of_class)
    return list(zip(false.tolist(), true.tolist(), strict=True))
