from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_language import SENTENCE, TINY

from regard.errors import UserError
from regard.models.language.decoder import Decoder
from regard.tasks.evaluation import evaluate
from regard.tasks.language import Language, LanguageSettings
from regard.tasks.task import rng


def test_training_windows_never_touch_the_validation_part(language):
    content = (SENTENCE * 40).encode()
    held_out = math.floor(len(content) * 0.1)
    seen = set()
    for step in range(200):
        windows = language.batch(rng(0, step), 5).numpy()
        assert windows.shape == (5, 14)
        for window in windows:
            assert bytes(window.tolist()) in content[:-held_out]
            seen.add(bytes(window.tolist()))
    assert len(seen) > 50


def test_batches_depend_on_seed_and_step_alone(language):
    torch.testing.assert_close(language.batch(rng(3, 7), 4), language.batch(rng(3, 7), 4))
    assert not torch.equal(language.batch(rng(3, 7), 4), language.batch(rng(3, 8), 4))
    assert not torch.equal(language.batch(rng(3, 7, 0), 4), language.batch(rng(3, 7, 1), 4))


def test_metrics_are_the_mean_over_all_windows(language):
    model = Decoder(TINY).eval()
    content = (SENTENCE * 40).encode()
    held_out = math.floor(len(content) * 0.1)
    validation = np.frombuffer(content[-held_out:], dtype=np.uint8).astype(np.int64)
    stretches = 130 // 13
    stride = (len(validation) - 1) // stretches
    nats = []
    with torch.no_grad():
        for number in range(stretches):
            window = torch.from_numpy(validation[number * stride : number * stride + 14])
            nats.append(float(F.cross_entropy(model(window[None, :-1])[0], window[1:])))
    mean = sum(nats) / len(nats)
    metrics = evaluate(language, model, "validation", 4)
    assert metrics["bits_per_byte"] == pytest.approx(mean / math.log(2), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)


def test_bits_per_byte_count_bytes_and_not_tokens(text_file, tmp_path):
    task = Language(LanguageSettings(length=5, tokenizer="bpe:280"))
    task.read(text_file, cache=tmp_path)
    assert 1.2 < task.bytes_per_token < 10
    assert task.summary({"nats": 10.0, "tokens": 5.0})["bits_per_byte"] == pytest.approx(
        2 / math.log(2) / task.bytes_per_token
    )
    assert task.model_fields() == {"vocab_size": 280}


def test_facts_bring_the_tokenizer_back(text_file, tmp_path):
    task = Language(LanguageSettings(length=5, tokenizer="bpe:280"))
    task.read(text_file, cache=tmp_path)
    other = Language(LanguageSettings(length=5))
    other.restore(json.loads(json.dumps(task.facts())))
    assert other.tokenizer.encode("the dog") == task.tokenizer.encode("the dog")


def test_the_sample_needs_no_download_and_is_large(tmp_path):
    task = Language(LanguageSettings())
    task.read(None, cache=tmp_path)
    assert "standard library" in task.described
    assert len(task._parts["train"]) > 1_000_000


def test_extras_show_perplexity_by_length_and_a_sample(language):
    extras = language.extras(Decoder(TINY).eval(), "validation")
    (_, header, rows), (_, text) = extras.tables[0], extras.samples[0]
    assert header[0] == "tokens"
    assert [row[0] for row in rows] == ["13", "26", "52", "104"]
    content = (SENTENCE * 40).encode()
    assert text.encode().startswith(content[-math.floor(len(content) * 0.1) :][:64])


def test_predictions_are_a_line_per_line(language, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("the quick\n\nthe lazy dog\n")
    (written,) = language.predict(Decoder(TINY).eval(), [path], tmp_path)
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert [row["text"] for row in rows] == ["the quick", "the lazy dog"]
    assert all(row["bits_per_byte"] > 0 and isinstance(row["continuation"], str) for row in rows)


def test_too_little_text_is_refused_with_both_numbers(tmp_path):
    (tmp_path / "short.txt").write_text("x" * 99)
    with pytest.raises(UserError, match=r"has 100 tokens.*need 102"):
        Language(LanguageSettings(length=50)).read(tmp_path / "short.txt", cache=tmp_path)


@pytest.mark.parametrize("wrong", [{"length": 0}, {"validation_share": 1.0}, {"evaluation_tokens": -1}])
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LanguageSettings(**wrong)
