from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from regard.compare.budget import build_host
from regard.compare.job import read_description, store_images, store_text
from regard.compare.problems import make_problem
from regard.compare.text import load_corpus
from regard.compare.training import DivergedError, Trainer, learning_rate
from regard.tasks.images.arrays import load_images

CPU = torch.device("cpu")


def nothing(*_: object) -> None:
    return None


@pytest.fixture
def text_problem(settings, text_file, tmp_path):
    race = settings(steps=7)
    store_text(load_corpus(str(text_file), train_length=16), tmp_path, train_length=16)
    return make_problem(race, read_description(tmp_path), tmp_path, CPU)


def new_trainer(problem, name="softmax", seed=0, host=None):
    torch.manual_seed(seed)
    return Trainer(host or build_host(name, problem.settings, None, 9).train(), problem, seed)


def test_the_rate_warms_up_and_falls():
    rates = [learning_rate(step, 100, 64) for step in range(100)]
    assert rates[0] == pytest.approx(5e-4)
    assert max(rates) == rates[9] == pytest.approx(5e-3)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(5e-4, rel=0.01)
    assert learning_rate(9, 100, 256) == pytest.approx(2.5e-3)


def test_training_learns(text_problem, tmp_path):
    trainer = new_trainer(text_problem)
    first = text_problem.validation_loss(trainer.host.eval())
    trainer.host.train()
    trainer.run(tmp_path / "c.pt", nothing, nothing)
    assert trainer.curve.steps[-1] == trainer.curve.validation_steps[-1] == 7
    assert trainer.curve.validation[-1] < first - 0.5
    quality = text_problem.quality(trainer.host.eval(), nothing, nothing)
    assert quality["quality"] == pytest.approx(trainer.curve.validation[-1], abs=1e-4)


class Stop(Exception):
    pass


def test_a_run_in_pieces_equals_a_run_in_one(text_problem, tmp_path):
    whole = new_trainer(text_problem)
    whole.run(tmp_path / "whole.pt", nothing, nothing)
    for stop_at in (0, 3, 5):
        ticks = iter(range(100))

        def stop(ticks=ticks, stop_at=stop_at):
            if next(ticks) == stop_at:
                raise Stop

        checkpoint = tmp_path / f"{stop_at}.pt"
        with pytest.raises(Stop):
            new_trainer(text_problem).run(checkpoint, stop, nothing)
        continued = new_trainer(text_problem, seed=0)
        continued.run(checkpoint, nothing, nothing)
        assert vars(continued.curve) == vars(whole.curve)
        for ours, theirs in zip(continued.host.parameters(), whole.host.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_the_checkpoint_of_another_seed_is_not_used(text_problem, tmp_path):
    trainer = new_trainer(text_problem)
    trainer.step()
    trainer.save(tmp_path / "c.pt")
    other = new_trainer(text_problem, seed=1)
    other.load(tmp_path / "c.pt")
    assert other.next_step == 0


def test_a_loss_that_is_no_number_stops_with_its_step(text_problem, tmp_path, outsiders):
    with pytest.raises(DivergedError, match=r"loss became NaN at step 3"):
        new_trainer(text_problem, "toy_nan").run(tmp_path / "c.pt", nothing, nothing)
    host = build_host("softmax", text_problem.settings, None, 9)
    torch.nn.init.constant_(host.head.weight, math.inf)
    with pytest.raises(DivergedError, match=r"loss became (NaN|infinite) at step 1"):
        new_trainer(text_problem, host=host).run(tmp_path / "d.pt", nothing, nothing)


def test_bits_per_byte_are_those_of_every_window(text_problem):
    host = build_host("linear", text_problem.settings, None, 9).eval()
    found = text_problem.quality(host, nothing, nothing)
    assert [point["factor"] for point in found["extrapolation"]] == [1, 2, 4, 8]
    content = torch.tensor(text_problem.validation.astype("int64"))
    stretches = (len(content) - 1) // 128
    stride = (len(content) - 1) // stretches
    for point in found["extrapolation"]:
        bits, count = 0.0, 0
        for start in range(stretches):
            for offset in range(0, 128, point["length"]):
                window = content[start * stride + offset :][: point["length"] + 1]
                scores = host(window[None, :-1])[0].detach().double()
                for position, target in enumerate(window[1:]):
                    bits -= float(F.log_softmax(scores[position], dim=0)[target]) / math.log(2)
                    count += 1
        assert count == stretches * 128
        assert point["value"] == pytest.approx(bits / count, rel=1e-5)


def test_a_length_that_the_mechanism_refuses_is_noted(text_problem):
    host = build_host("linear", text_problem.settings, None, 9).eval()
    plain = host.forward
    notes = []

    def short_only(tokens):
        if tokens.shape[1] > 32:
            raise ValueError("at most 32 tokens")
        return plain(tokens)

    host.forward = short_only
    found = text_problem.quality(host, nothing, notes.append)
    assert [point["factor"] for point in found["extrapolation"]] == [1, 2]
    assert notes == [f"quality at {length} tokens not measured: at most 32 tokens" for length in (64, 128)]


def test_accuracy_is_counted_over_the_validation_images(settings, image_folder, tmp_path):
    store_images(load_images(str(image_folder), size=8), tmp_path)
    problem = make_problem(settings(task="image"), read_description(tmp_path), tmp_path, CPU)
    host = build_host("softmax", problem.settings, problem.shape, 9).eval()
    with torch.no_grad():
        right = [
            int(host(image[None]).argmax()) == int(label)
            for image, label in zip(problem.validation, problem.validation_labels, strict=True)
        ]
    assert problem.quality(host, nothing, nothing)["quality"] == pytest.approx(sum(right) / len(right))
    assert problem.train.mean().abs() < 1e-5
    batch, labels = problem.batch(0, 3)
    assert batch.shape == (2, 3, 8, 8)
    assert labels.shape == (2,)
