"""A network of ours in the layout of transformers gives its own scores there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from regard.errors import UserError
from regard.integrations.transformers.pretrained import load_pretrained
from regard.integrations.transformers.saving import save_decoder
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.tasks.tokenizers import ByteTokenizer, load_tokenizer

CONFIG = DecoderConfig(vocab_size=256, dim=24, num_layers=2, num_heads=3, hidden=40)


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"mixer_options": {"qkv_bias": True, "rope_base": 500.0}}])
def test_scores_are_its_own(tmp_path: Path, changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = Decoder(replace(CONFIG, **changes)).eval()
    error = save_decoder(model, ByteTokenizer(), tmp_path / "saved", length=77)
    assert error < 1e-4
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert loaded.config.max_position_embeddings == 77
    tokens = torch.randint(256, (2, 31), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=tokens).logits, model(tokens), atol=1e-4, rtol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert isinstance(load_pretrained(str(tmp_path / "saved")).tokenizer, ByteTokenizer)


def test_its_tokenizer_comes_along(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("bpe:300", ["the theory of the thing that thinks " * 40])
    model = Decoder(replace(CONFIG, vocab_size=tokenizer.vocab_size)).eval()
    save_decoder(model, tokenizer, tmp_path / "saved", length=64)
    found = load_pretrained(str(tmp_path / "saved")).tokenizer
    text = "that thinks the thing"
    assert found.encode(text) == tokenizer.encode(text)
    assert found.decode(found.encode(text)) == text


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mixer": "lightning"}, "its mixer is lightning, not softmax"),
        ({"positions": "sinusoidal"}, "it adds positions to its embedding"),
        ({"rotary": False}, "its attention has no rotary positions"),
        ({"mixer_options": {"num_kv_heads": 1}}, "its query heads share keys"),
    ],
)
def test_what_has_no_place_there_is_refused(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=f"no layout in transformers: {why}"):
        save_decoder(Decoder(replace(CONFIG, **changes)), ByteTokenizer(), tmp_path / "saved", length=64)
    assert not list(tmp_path.iterdir())
