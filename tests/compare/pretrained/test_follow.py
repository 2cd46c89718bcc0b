"""Following a text: losses are those of one forward pass, whatever the turns; hidden numbers; what a side counts."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import decoder

from regard.compare.pretrained.contestants import Contestant, contestants
from regard.compare.pretrained.follow import Followed, Side, follow, share_found
from regard.compare.pretrained.passages import (
    ANSWER,
    DEPTHS,
    HIDDEN,
    KEYS,
    QUESTION,
    Hidden,
    hide_numbers,
    read_passages,
)
from regard.compare.pretrained.settings import TOKENS_PER_TURN, YARDSTICK
from regard.errors import UserError
from regard.tasks.tokenizers import ByteTokenizer

OWN = Contestant(YARDSTICK, YARDSTICK)


def test_losses_are_those_of_one_forward_pass():
    model = decoder("qwen2")
    texts = torch.randint(3, 61, (2, 59), generator=torch.Generator().manual_seed(0))
    enough = contestants(("h2o", "recycled"), (256,), num_layers=2)
    sides = {each.name: Side(model, each) for each in (OWN, *enough)}
    found = follow(sides, texts, prompt=31, scored=13)
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        scores = torch.cat([model(input_ids=text[None, -44:]).logits for text in texts])
    expected = torch.nn.functional.cross_entropy(
        scores[:, 30:-1].flatten(0, 1), texts[:, -13:].flatten(), reduction="none"
    )
    for name, side in found.items():
        torch.testing.assert_close(torch.tensor(side.losses), expected, atol=1e-4, rtol=1e-4, msg=name)
        assert len(side.prefill_s) == 2
        assert len(side.turn_s) == 2 * (12 // TOKENS_PER_TURN)
    # 2 layers, keys and values of 31 tokens, 2 kv heads of 8, float32
    assert found[YARDSTICK].cache_bytes == 2 * 2 * 31 * 2 * 8 * 4


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        assert Followed(losses=[1.0, math.nan]).loss


def test_numbers_are_hidden_at_their_depths():
    tokenizer = ByteTokenizer()
    text = torch.full((401,), ord("x"))
    hidden = hide_numbers(text, tokenizer)
    assert [each.depth for each in hidden] == list(DEPTHS)
    for each, key in zip(hidden, KEYS, strict=True):
        told = tokenizer.decode(each.prompt.tolist())
        assert len(each.prompt) == 401
        assert told.endswith(QUESTION + " "), "a blank of its own belongs to the question"
        assert tokenizer.decode(each.answer.tolist()) == ANSWER.format(key=key).strip()
        start = told.index(HIDDEN.format(key=key))
        room = 401 - len(HIDDEN.format(key=key)) - len(QUESTION) - 1
        assert start == round(each.depth * room)
    assert hide_numbers(text[:150], tokenizer) == []


def test_the_share_found_counts_the_likeliest_tokens():
    model = decoder("llama")
    prompt = torch.randint(3, 61, (23,), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        first = int(model(input_ids=prompt[None]).logits[0, -1].argmax())
        second = int(model(input_ids=torch.cat((prompt, torch.tensor([first])))[None]).logits[0, -1].argmax())
    wrong = 3 if second != 3 else 4
    side = Side(model, OWN)
    assert share_found(side, [Hidden(prompt, torch.tensor([first, second]), 0.5)]) == 1.0
    assert share_found(side, [Hidden(prompt, torch.tensor([first, wrong]), 0.5)]) == 0.5
    assert share_found(side, []) is None


def test_passages_are_apart_and_as_long_as_asked(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{number:06d} " for number in range(3000)))
    found = read_passages(str(path), ByteTokenizer(), tokens=101, count=3)
    assert found.ids.shape == (3, 101)
    starts = [int(ByteTokenizer().decode(row.tolist()).split()[1]) for row in found.ids]
    assert sorted(starts) == starts
    assert starts[0] > 500
    with pytest.raises(UserError, match=r"gives 21,001 tokens, and the longest prompt .* needs 30,000"):
        read_passages(str(path), ByteTokenizer(), tokens=30_000, count=1)
