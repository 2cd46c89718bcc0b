from __future__ import annotations

import pytest
import torch

from regard.compare import cost, decoding
from regard.compare.attention import attention_map, why_no_map
from regard.compare.budget import ImageShape, build_host
from regard.compare.cost import fitted_exponent, input_of, measure_cost, rounds_within, why_too_large
from regard.compare.decoding import measure_decode, why_no_decoding
from regard.compare.hosts import WIDTH_UNITS
from regard.compare.job import read_description, store_text
from regard.compare.problems import make_problem
from regard.compare.speed import count_macs, measure_speed
from regard.compare.text import load_corpus
from regard.registry import entry_of

CPU = torch.device("cpu")


def nothing() -> None:
    return None


@pytest.fixture
def problem(settings, text_file, tmp_path):
    store_text(load_corpus(str(text_file), train_length=16), tmp_path, train_length=16)
    return make_problem(settings(), read_description(tmp_path), tmp_path, CPU)


def test_cost_is_measured_at_every_length_with_the_yardstick(settings, monkeypatch):
    monkeypatch.setattr(cost, "SECONDS_PER_LENGTH", 0.0)
    notes: list[str] = []
    found = measure_cost("linear", settings(lengths=(64, 256, 1024)), CPU, nothing, notes.append)
    assert found["lengths"] == [64, 256, 1024]
    assert notes == []
    for ours, theirs, ratio in zip(found["forward_s"], found["yardstick_s"], found["ratio"], strict=True):
        assert ratio == pytest.approx(ours / theirs)
    assert found["peak_bytes"][-1] >= 1024 * 12 * 4
    assert found["time_exponent"] < 1.6


def test_a_length_without_memory_is_noted_and_the_others_are_kept(settings, outsiders, monkeypatch):
    monkeypatch.setattr(cost, "SECONDS_PER_LENGTH", 0.0)
    notes: list[str] = []
    found = measure_cost("toy_hungry", settings(lengths=(16, 32, 64)), CPU, nothing, notes.append)
    assert [value is None for value in found["ratio"]] == [False, False, True]
    assert notes == ["cost at 64 tokens not measured: out of memory"]


def test_a_square_that_would_not_fit_is_not_tried(settings, monkeypatch):
    class Entry:
        class traits:
            memory = "n^2"

    monkeypatch.setattr(cost, "entry_of", lambda name: Entry)
    monkeypatch.setattr(cost, "available_memory_bytes", lambda: 100 * 2**20)
    race = settings(dim=16, num_heads=4)
    assert why_too_large("any", race, 512, CPU) == ""
    assert why_too_large("any", race, 4096, CPU) == "about 1.0 GiB needed, 100 MiB free"
    Entry.traits.memory = "n"
    assert why_too_large("any", race, 4096, CPU) == ""


def test_what_would_take_too_long_is_not_tried(settings, monkeypatch):
    monkeypatch.setattr(cost, "LONGEST_CALL_S", 0.0)
    monkeypatch.setattr(cost, "SECONDS_PER_LENGTH", 0.0)
    notes: list[str] = []
    found = measure_cost("softmax", settings(lengths=(8, 16, 32)), CPU, nothing, notes.append)
    assert [value is None for value in found["forward_s"]] == [False, True, True]
    assert found["time_exponent"] is None
    assert len(notes) == 2


def test_exponents_are_those_of_the_longer_half():
    lengths = [64, 128, 256, 512, 1024, 2048]
    values = [1.0, 1.0, 1.0, 4.0, 16.0, 64.0]
    assert fitted_exponent(lengths, values) == pytest.approx(2.0)
    assert fitted_exponent(lengths, [None] * 5 + [1.0]) is None
    assert fitted_exponent([4, 8], [3.0, 6.0]) == pytest.approx(1.0)


def test_rounds_stay_within_bounds():
    assert (rounds_within(10.0, 1.0), rounds_within(0.1, 1.0), rounds_within(0.0, 1.0)) == (3, 10, 15)


@pytest.mark.parametrize(("length", "space"), [(64, (8, 8)), (13, (1, 13)), (24, (4, 6))])
def test_a_feature_mixer_gets_as_many_positions(settings, outsiders, length, space):
    assert input_of("toy_gate", settings(), length, CPU).shape == (1, 12, *space)


def test_decoding_reads_first_and_counts_the_state_at_its_position(settings, monkeypatch):
    monkeypatch.setattr(decoding, "SECONDS_PER_POSITION", 0.0)
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", 7)
    notes: list[str] = []
    race = settings(lengths=(11, 44))
    found = measure_decode("softmax", race, CPU, nothing, notes.append)
    assert found["positions"] == [11, 44]
    # keys and values of 12 numbers of 4 bytes per token, and the position
    assert found["state_bytes"] == [11 * 2 * 12 * 4 + 8, 44 * 2 * 12 * 4 + 8]
    for ours, theirs, ratio in zip(found["s_per_token"], found["yardstick_s"], found["ratio"], strict=True):
        assert ratio == pytest.approx(ours / theirs)
    linear = measure_decode("linear", race, CPU, nothing, notes.append)
    assert linear["state_bytes"][0] == linear["state_bytes"][1]
    assert notes == []


def test_what_does_not_decode_says_why(outsiders):
    assert why_no_decoding("toy_mean", "text") == "has no state"
    assert why_no_decoding("softmax", "image") == "images are not decoded"
    assert why_no_decoding("softmax", "text") == ""


def test_macs_are_counted_per_byte(problem):
    host = build_host("softmax", problem.settings, None, 9).eval()
    attention = 4 * 12 * 12 + 2 * 16 * 12
    assert count_macs(host, problem) == 2 * (attention + 2 * 12 * 9) + 12 * 256


def test_training_speed_leaves_the_hosts_alone(problem):
    host = build_host("linear", problem.settings, None, 9)
    yardstick = build_host("softmax", problem.settings, None, 9)
    before = [parameter.clone() for parameter in host.parameters()]
    found = measure_speed(host, yardstick, problem, nothing)
    assert found["tokens_per_s"] == pytest.approx(2 * 16 / found["step_s"])
    assert found["ratio"] > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(before, host.parameters(), strict=True))


def test_the_map_is_that_of_the_middle_layer(problem):
    host = build_host("softmax", problem.settings, None, 9).eval()
    shown = attention_map(host, problem, entry_of("softmax").traits)
    rows = torch.tensor(shown["heads"])
    assert rows.shape == (3, 48, 48)
    assert (rows.sum(-1) - 1).abs().max() < 0.01
    assert rows.triu(1).abs().max() == 0
    assert len(shown["labels"]) == 48
    assert not shown["signed"]
    assert shown["layer"] == 2
    with torch.no_grad():
        sample, _ = problem.shown_example()
        x = host.blocks[0](host.embedding(sample))
        expected = host.mixers()[1].attention_map(host.blocks[1].mixer_norm(x))
    torch.testing.assert_close(rows[None], expected, atol=6e-5, rtol=0)


def test_a_signed_map_says_so(problem):
    host = build_host("lightning", problem.settings, None, 9).eval()
    shown = attention_map(host, problem, entry_of("lightning").traits)
    assert torch.tensor(shown["heads"]).min() < 0
    assert shown["signed"]


def test_what_has_no_map_says_why(outsiders):
    assert why_no_map(entry_of("toy_mean").traits) == "has no map"
    assert "gate" in why_no_map(entry_of("toy_gate").traits)
    assert why_no_map(entry_of("softmax").traits) == ""


def test_image_hosts_are_counted_per_image(settings, outsiders):
    class Images:
        tokens_per_example = 1

        def one_example(self):
            return torch.randn(1, 1, 8, 8)

    race, shape = settings(task="image", num_layers=1, dim=64, num_heads=4), ImageShape(1, 8, 10)
    macs = count_macs(build_host("toy_gate", race, shape, WIDTH_UNITS).eval(), Images())
    first = 8 * 8 * (9 * 16 + 2 * 9 * 16 * 16)
    second = 4 * 4 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
    third = 2 * 2 * (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64)
    assert macs == first + second + third + 64 * 10
