"""The tiny vision-language model: hooks show its own attention, planted sinks go again; and the task of patches."""

from __future__ import annotations

import pytest
import torch

from regard.claims._grid_questions import SINK_DIMS, TAU, GridReader, accuracy, sample, trained_reader
from regard.claims._vlm import LAYERS, PATCHES, make_prompt, planted, run_vlm, tiny_vlm, weigh_values
from regard.ops.visual_sinks import sink_tokens


@pytest.mark.slow
def test_hooks_show_the_models_own_attention() -> None:
    model, prompt = tiny_vlm(seed=0), make_prompt(seed=0)
    assert int(prompt.image.sum()) == PATCHES
    with torch.no_grad():
        own = model(input_ids=prompt.tokens, pixel_values=prompt.pixels, output_attentions=True)
    logits, calls = run_vlm(model, prompt)
    assert torch.equal(logits, own.logits)
    assert len(calls) == len(own.attentions) == LAYERS
    for call, attention in zip(calls, own.attentions, strict=True):
        torch.testing.assert_close(call.attention, attention)
    same, _ = run_vlm(model, prompt, lambda layer, call: weigh_values(call, call.attention))
    torch.testing.assert_close(same, logits, rtol=1e-4, atol=1e-4)
    with planted(model, tokens=(0, 7), dims=(3, 5)):
        changed, calls = run_vlm(model, prompt)
        assert sink_tokens(calls[3].x, (3, 5), tau=5.0)[0].nonzero()[:, 0].tolist() == [0, 7]
        assert float(calls[3].v[0, :, [0, 7]].norm(dim=-1).max()) < float(calls[3].v.norm(dim=-1).mean())
    assert not torch.allclose(changed, logits)
    assert torch.equal(run_vlm(model, prompt)[0], logits)


def test_a_question_has_the_answer_of_its_patch() -> None:
    asked = sample(seed=3, step=5, batch=200)
    again = sample(seed=3, step=5, batch=200)
    assert torch.equal(asked.patches, again.patches)
    features = asked.patches[torch.arange(200), asked.places]
    for name in (0, 1):
        rows = asked.attributes == name
        answers = asked.answers[rows] - 4 * name
        assert 0 <= int(answers.min()) <= int(answers.max()) < 4
        # noise has half the size of the answer's 1
        told = features[rows][:, 4 * name : 4 * name + 4].argmax(dim=1)
        assert float((told == answers).double().mean()) > 0.6


def test_a_reader_is_trained_and_asked() -> None:
    model = trained_reader(seed=0, steps=2, batch=4)
    assert isinstance(model, GridReader)
    with torch.no_grad():
        h = model.embed(sample(seed=1, step=0, batch=3))
    assert sink_tokens(h, SINK_DIMS, tau=TAU).sum(dim=1).tolist() == [2, 2, 2]
    for redistribute in (False, True):
        assert 0 <= accuracy(model, sink_bias=2.0, redistribute=redistribute, questions=16) <= 100
    assert not any(mixer.active for mixer in model.mixers())
