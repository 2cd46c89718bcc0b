"""From a softmax network to another mechanism: what is taken over, what is trained, and the losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from regard.errors import UserError
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.tasks.evaluation import evaluate
from regard.tasks.language import Language, LanguageSettings
from regard.tasks.task import rng
from regard.training.conversion import (
    AttentionTransfer,
    TaughtLanguage,
    convertible,
    mixer_inputs,
    swap,
    teacher_weight,
    train_mixers_alone,
)

SEA_OPTIONS = {"keys_per_query": 4, "estimate_width": 8, "max_positions": 64}
MECHANISMS = [("hedgehog", {}), ("hedgehog", {"feature_map": "exp_dim", "tied": True}), ("sea", SEA_OPTIONS)]
MECHANISM = pytest.mark.parametrize(("mechanism", "options"), MECHANISMS, ids=["hedgehog", "hedgehog, tied", "sea"])


def made(**changes) -> Decoder:
    """A trained softmax network, as it were."""
    config = DecoderConfig(**{"vocab_size": 256, "dim": 12, "num_layers": 2, "num_heads": 2, "hidden": 16, **changes})
    torch.manual_seed(2)
    model = Decoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def language(tmp_path) -> Language:
    path = Path(tmp_path / "text.txt")
    path.write_text("the dog sleeps and the fox runs\n" * 30)
    task = Language(LanguageSettings(length=13, evaluation_tokens=52))
    task.read(path, cache=tmp_path)
    return task


def tokens(rows: int = 2, count: int = 13) -> torch.Tensor:
    return torch.randint(97, 123, (rows, count))


# --------------------------------------------------------------------------------------------------- what is swapped


@MECHANISM
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": True, "positions": "sinusoidal", "rotary": False},
        {"mixer_options": {"num_kv_heads": 1, "qkv_bias": True}},
    ],
    ids=["plain", "tied, sinusoidal", "shared keys, bias"],
)
def test_the_weights_are_the_teachers_but_for_what_is_new(mechanism, options, changes):
    teacher = made(**changes)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = swap(teacher, mechanism, options)
    theirs, ours = teacher.state_dict(), student.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
        torch.testing.assert_close(before[name], value, rtol=0, atol=0)
        assert ours[name].data_ptr() != value.data_ptr()
    new = set(ours) - set(theirs)
    assert new
    assert all(".mixer." in name for name in new)
    assert student.config.mixer == mechanism
    assert (student.head.weight is student.embedding.weight) == bool(changes.get("tied"))
    assert not student.training
    assert student(tokens()).isfinite().all()
    # its config alone builds the same network again
    again = Decoder(student.config)
    again.load_state_dict(ours)
    x = tokens(1, 7)
    torch.testing.assert_close(again.eval()(x), student(x), rtol=0, atol=0)


def test_a_swapped_network_is_in_the_teachers_precision():
    student = swap(made().double(), "hedgehog")
    assert {value.dtype for value in student.parameters()} == {torch.float64}


@torch.no_grad()
def test_a_swapped_mixer_works_on_the_teachers_projections():
    student = swap(made(rotary=False), "hedgehog")
    # with features that carry nothing, hedgehog attends evenly
    for parameter in student.mixers()[0].map_parameters():
        parameter.zero_()
    x = torch.randn(1, 5, 12)
    mixer = student.mixers()[0]
    values = mixer.v_proj(x)
    means = values.cumsum(dim=1) / torch.arange(1, 6)[None, :, None]
    torch.testing.assert_close(mixer(x), mixer.o_proj(means), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "can"), [("hedgehog", True), ("sea", True), ("lightning", False), ("softmax", False), ("eca", False)]
)
def test_which_mechanisms_can_take_over(name, can):
    assert convertible(name) is can
    if not can:
        with pytest.raises(UserError, match=f"{name} cannot take over softmax attention: it has no from_softmax"):
            swap(made(), name)


@pytest.mark.parametrize(("name", "weight"), [("sea", 1.0), ("hedgehog", 0.0)])
def test_how_much_finetuning_asks_for_the_teachers_logits(name, weight):
    assert teacher_weight(name) == weight


@pytest.mark.parametrize(
    ("mechanism", "options", "message"),
    [
        ("hedgehog", {"nothing": 1}, "hedgehog: .*nothing"),
        ("hedgehog", {"feature_map": "magic"}, "hedgehog: .*magic"),
        ("sea", {"keys_per_query": 0}, "sea: .*keys_per_query"),
    ],
)
def test_options_that_do_not_fit_are_refused(mechanism, options, message):
    with pytest.raises(UserError, match=message):
        swap(made(), mechanism, options)


def test_only_softmax_is_converted():
    with pytest.raises(UserError, match="only softmax attention can be converted, and this network has lightning"):
        swap(made(mixer="lightning"), "hedgehog")


# --------------------------------------------------------------------------------------------------- distillation


@torch.no_grad()
def test_what_enters_the_mixers_is_what_the_formula_gives():
    network, ids = made(), tokens()
    x = network.embedding(ids)
    expected = []
    for block in network.blocks:
        expected.append(block.mixer_norm(x))
        x = x + block.mixer(expected[-1])
        x = x + block.mlp(block.mlp_norm(x))
    found = mixer_inputs(network, ids)
    assert len(found) == 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not any(mixer._forward_pre_hooks for mixer in network.mixers())


def test_hooks_are_removed_when_the_network_fails():
    network = made()
    with pytest.raises(IndexError):
        mixer_inputs(network, torch.full((1, 3), 999))
    assert not any(mixer._forward_pre_hooks for mixer in network.mixers())


@MECHANISM
def test_the_loss_of_the_transfer_is_the_mean_over_layers_on_the_teachers_inputs(language, mechanism, options):
    teacher = made()
    student = swap(teacher, mechanism, options)
    batch = language.batch(rng(0, 3), 3)
    inputs = mixer_inputs(teacher, batch[:, :-1])
    expected = (
        sum(float(mixer.transfer_loss(x).detach()) for mixer, x in zip(student.mixers(), inputs, strict=True)) / 2
    )
    transfer = AttentionTransfer(language, teacher)
    assert float(transfer.loss(student, batch).detach()) == pytest.approx(expected, rel=1e-6)
    # another network before the mixers would see other inputs: it is the teacher's that count
    with torch.no_grad():
        student.embedding.weight.zero_()
    assert float(transfer.loss(student, batch).detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_the_transfer_is_measured_the_same_in_any_batch(language, rows):
    teacher = made()
    student = swap(teacher, "hedgehog")
    transfer = AttentionTransfer(language, teacher)
    windows = torch.cat(list(transfer.evaluation_batches("validation", 100)))
    with torch.no_grad():
        alone = [float(transfer.loss(student, window[None])) for window in windows]
    measured = evaluate(transfer, student, "validation", rows)
    assert measured == {"transfer": pytest.approx(sum(alone) / len(alone), rel=1e-5)}
    assert transfer.metric in measured
    assert transfer.settings == language.settings
    assert transfer.facts() == language.facts()


def stepped(task: Language, student: Decoder, batch: torch.Tensor, *, steps: int = 3) -> set[str]:
    """Train a few steps; the names of the weights that changed."""
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    student.train()
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(student, batch).backward()
        optimizer.step()
    student.eval()
    return {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}


@MECHANISM
def test_the_transfer_changes_mixers_alone(language, mechanism, options):
    teacher = made()
    student = swap(teacher, mechanism, options)
    train_mixers_alone(student)
    batch = language.batch(rng(0, 3), 3)
    transfer = AttentionTransfer(language, teacher)
    first = float(transfer.loss(student, batch).detach())
    changed = stepped(transfer, student, batch, steps=12)
    assert changed
    assert all(".mixer." in name for name in changed)
    if mechanism == "hedgehog":
        assert all(".q_map." in name or ".k_map." in name for name in changed)
        assert {name.partition(".mixer.")[0] for name in changed} == {"blocks.0", "blocks.1"}
    # softmax's own projections stay what the teacher learned
    assert not changed & set(teacher.state_dict())
    assert float(transfer.loss(student, batch).detach()) < first
    assert all(parameter.grad is None for parameter in teacher.parameters())


# --------------------------------------------------------------------------------------------------- finetuning


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_taught_loss_is_cross_entropy_and_the_teachers_divergence(language, weight):
    teacher, student = made(), made(hidden=11)
    with torch.no_grad():
        student.embedding.weight.mul_(0.3)
    batch = language.batch(rng(0, 3), 2)
    taught = TaughtLanguage(language, teacher, weight)
    nats, divergence = [], []
    with torch.no_grad():
        ours, theirs = student(batch[:, :-1]).softmax(dim=-1), teacher(batch[:, :-1]).softmax(dim=-1)
        for row in range(2):
            for place in range(13):
                p, q = theirs[row, place].double(), ours[row, place].double()
                nats.append(-float(q[batch[row, place + 1]].log()))
                divergence.append(float((p * (p / q).log()).sum()))
        assert min(divergence) > 0
        expected = sum(nats) / len(nats)
        student.eval()
        assert float(taught.loss(student, batch)) == pytest.approx(expected, rel=1e-5)
        student.train()
        expected += weight * sum(divergence) / len(divergence)
        assert float(taught.loss(student, batch)) == pytest.approx(expected, rel=1e-4)


def test_a_network_that_answers_as_its_teacher_is_not_drawn_anywhere(language):
    teacher = made()
    same = made()
    batch = language.batch(rng(0, 3), 2)
    loss = TaughtLanguage(language, teacher, 5.0).loss(same.train(), batch)
    plain = F.cross_entropy(teacher(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    torch.testing.assert_close(loss.detach(), plain.detach())


def test_finetuning_changes_all_weights_and_not_the_teacher(language):
    teacher = made()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = swap(teacher, "hedgehog")
    changed = stepped(TaughtLanguage(language, teacher, 1.0), student, language.batch(rng(0, 3), 3))
    assert changed == set(student.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
