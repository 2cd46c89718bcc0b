"""Records of training runs, made up but plausible and always the same, and one that is as hostile as can be."""

from __future__ import annotations

import math
import random
from typing import Any

from sample_results import HOSTILE

from regard.report.record import EvaluationRecord, TrainingRecord

NAN, INF = float("nan"), float("inf")


def empty() -> TrainingRecord:
    """A run that was stopped before its first step."""
    return TrainingRecord(title="transnormer_lm on language")


def one_step() -> TrainingRecord:
    """A run of one step, without an evaluation."""
    return TrainingRecord(title="one", steps=[1], loss=[5.25], learning_rate=[1e-3], stopped="all steps done")


def rate_at(step: int, steps: int) -> float:
    """A warm-up of a twentieth of the steps, then half a cosine to a tenth."""
    warm = max(1, steps // 20)
    return 3e-3 * (step / warm if step <= warm else 0.55 + 0.45 * math.cos(math.pi * (step - warm) / (steps - warm)))


def loss_at(step: int, generator: random.Random) -> float:
    """A power law with the noise of batches."""
    return 1.42 + 3.9 * step**-0.36 + generator.gauss(0, 0.07)


def normal(steps: int = 2000) -> TrainingRecord:
    """A language model's run with a resumption, evaluations, generated text and tables."""
    generator = random.Random(7)
    places = list(range(1, steps + 1))
    evaluated = list(range(steps // 10, steps + 1, steps // 10))
    validation = [1.5 + 3.9 * step**-0.36 + (0.02 if step == steps else 0.0) for step in evaluated]
    names = ["0\u2013255", "256\u2013511", "512\u20131,023"]
    words = "the little house on the hill was quiet, and nobody asked why it had been painted green\n"
    return TrainingRecord(
        title="transnormer_lm on language",
        command=["regard", "train", "transnormer_lm", "--steps", str(steps), "--data", "my text.txt"],
        task="language",
        system="lightning",
        data="Three novels, 2.1 million bytes, split 90/5/5 by position",
        facts=[
            ("dim", 64),
            ("num_layers", 4),
            ("dropout", 0.0),
            ("tied embedding", True),
            ("optimizer", "AdamW, betas 0.9 and 0.95, weight decay 0.1"),
            ("device", "cpu, 2 threads"),
            ("seed", 0),
            ("best checkpoint", "runs/2026-11-24/transnormer_lm/best"),
        ],
        parameters=412_736,
        items_per_s=18_250.0,
        items="tokens",
        metric="perplexity",
        better="lower",
        final={
            "validation": {"perplexity": math.exp(validation[-2]), "loss": validation[-2], "accuracy": 0.5132},
            "test": {"perplexity": 5.0123, "loss": math.log(5.0123), "accuracy": 0.5077},
        },
        notes=["The validation part is shorter than one batch: its figures are noisy."],
        samples=[(f"Continuation {i}, temperature 0.{i + 6}", words * (i + 1)) for i in range(3)],
        tables=[
            ("Perplexity by position", ["position", "perplexity", "tokens"], [[n, 5.4, 81_920] for n in names]),
            (
                "Worst tokens",
                ["token", "share", "what it stands in"],
                [["q", 0.001, words.strip()], ["z", 0.0004, "nobody asked"]],
            ),
        ],
        charts=[
            (
                "A forecast",
                "hour",
                "load (MW)",
                {
                    "truth": [(h, 40 + 9 * math.sin(h / 3.8)) for h in range(72)],
                    "forecast": [(h, 41 + 8.2 * math.sin(h / 3.8 + 0.1)) for h in range(48, 72)],
                },
            )
        ],
        steps=places,
        loss=[loss_at(step, generator) for step in places],
        learning_rate=[rate_at(step, steps) for step in places],
        seconds_per_step=0.0561,
        data_share=0.021,
        evaluations=[
            (step, {"perplexity": math.exp(value), "loss": value, "accuracy": 0.62 - 0.07 * value})
            for step, value in zip(evaluated, validation, strict=True)
        ],
        best_step=evaluated[-2],
        stopped="all steps done",
        resumed_from=[steps * 3 // 5],
    )


def long() -> TrainingRecord:
    """200,000 steps with one spike, one gap and a first stretch far above the rest."""
    generator = random.Random(11)
    steps = list(range(1, 200_001))
    loss: list[float | None] = [10.8 * math.exp(-step / 900) + loss_at(step, generator) for step in steps]
    loss[123_455] = 41.5
    loss[150_000] = NAN
    return TrainingRecord(title="long", steps=steps, loss=loss, learning_rate=[rate_at(s, 200_000) for s in steps])


def gaps() -> TrainingRecord:
    """Everything that can be missing or not finite."""
    losses: list[float | None] = [NAN, 2.0, None, INF, 1.0, -INF, 1e308, 0.0]
    return TrainingRecord(
        title="gaps",
        steps=[1, 2, 3, 4, 5, 6, 7, 8],
        loss=losses,
        learning_rate=[None] * 8,
        metric="accuracy",
        better="higher",
        evaluations=[(2, {"accuracy": NAN, "loss": 3.0}), (4, {}), (6, {"accuracy": 0.75}), (8, {"accuracy": None})],
        best_step=6,
        final={"validation": {"accuracy": INF}, "test": {"accuracy": None, "f1": NAN}},
        seconds_per_step=NAN,
        data_share=None,
        items_per_s=INF,
        tables=[("T", ["a", "b"], [["x", NAN], [None, 3], ["only one"]]), ("Empty", [], [])],
        charts=[("C", "x", "y", {"s": [(0, 1.0), (1, NAN), (2, 3.0), (NAN, 1.0)], "t": []}), ("D", "x", "y", {})],
    )


def constant() -> TrainingRecord:
    """Figures without a span, and some that are tiny or huge."""
    return TrainingRecord(
        title="constant",
        steps=list(range(10, 410, 10)),
        loss=[1.0 + 1e-16] * 40,
        learning_rate=[1e-13] * 40,
        metric="perplexity",
        evaluations=[(400, {"perplexity": 3e88, "loss": -4.0})],
        best_step=400,
        charts=[
            ("Tiny", "x", "y", {"s": [(0, 1e-14), (1, 3e-14)], "z": [(0, 5e-324), (1, 0.0)]}),
            ("Huge", "x", "y", {"s": [(-9e99, -9e99), (9e99, 9e99)]}),
            ("Flat", "x", "y", {"s": [(3, 7.0), (3, 7.0)]}),
        ],
    )


def hostile() -> TrainingRecord:
    """Every string that a user could choose tries to become markup, a script or a template."""
    h = list(HOSTILE)
    evil: Any = h[0]
    return TrainingRecord(
        title=h[2],
        command=["regard", "train", *h],
        task=h[1],
        system=h[4],
        data=h[5],
        facts=[(a, b) for a, b in zip(h, h[::-1], strict=True)] + [("nested", {h[0]: [h[1]]})],
        parameters=10**400,
        items_per_s=1e9,
        items=h[0],
        metric=h[1],
        better="higher",
        final={h[0]: {h[1]: 1.5, h[6]: 2.5}, "validation": {h[1]: 1.25}, h[6]: {h[3]: -1e-30}},
        notes=h,
        samples=[(a, a + "\n\t" + b) for a, b in zip(h, h[::-1], strict=True)] + [("Long", "x" * 100_000)],
        tables=[(h[0], h, [h, h[::-1], [1, 2.5, None, evil]]), (h[6], ["n"] * 24, [list(range(24))] * 1500)],
        charts=[
            (h[0], h[1], h[3], {name: [(0, i), (1, i + 1)] for i, name in enumerate(h)}),
            (h[6], h[6], h[6], {f"{h[0]}{i}": [(0, i), (1, i)] for i in range(60)}),
        ],
        steps=[1, 2, 3],
        loss=[3.0, 1e99, -1e99],
        learning_rate=[1e-3, 1e-3, 1e-3],
        evaluations=[(step, dict.fromkeys(h, step * 0.1)) for step in (1, 2, 3)],
        validation_loss=h[0],
        best_step=3,
        stopped=h[2],
        resumed_from=list(range(1, 60)),
    )


def evaluation() -> EvaluationRecord:
    """What `regard evaluate` finds: the ingredients without the curves."""
    run = normal()
    return EvaluationRecord(
        title=run.title,
        command="regard evaluate runs/best --out report",
        task=run.task,
        system=run.system,
        data=run.data,
        facts=run.facts,
        parameters=run.parameters,
        items_per_s=45_200.0,
        items="tokens",
        metric="accuracy",
        better="higher",
        final={"test": {"accuracy": 0.913, "loss": 0.2871}},
        samples=run.samples,
        charts=run.charts,
        tables=[
            (
                "Confusion matrix",
                ["truth \\ prediction", "walking", "running", "sitting"],
                [["walking", 96, 4, 0], ["running", 7, 91, 2], ["sitting", 0, 3, 97]],
            )
        ],
    )


RUNS = {
    "empty": empty,
    "one_step": one_step,
    "normal": normal,
    "long": long,
    "gaps": gaps,
    "constant": constant,
    "hostile": hostile,
}
