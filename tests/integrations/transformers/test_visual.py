"""VAR inside a small vision-language model: found images and sinks, rows as by brute force, nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from regard.integrations.transformers import redistribute_visual
from regard.ops.visual_sinks import SinkRule, after_image, redistribute, sink_tokens

IMAGE, PATCHES, SINK_DIMS = 60, 9, (3, 17)
RULE = SinkRule(p=0.6, rho=0.9, summ=0.05)


def small_llava(attention: str = "sdpa") -> Any:
    """Random weights, and embeddings of some tokens that are large in two dimensions in every layer."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=4
    )
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, image_seq_length=PATCHES)
    model = LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation(attention)
    return model


def plant(model: Any, places: list[int]) -> None:
    """Tokens at these places of the sequence enter the text layers with massive activations."""

    def enlarge(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        states = kwargs["inputs_embeds"].clone()
        if states.shape[1] > max(places):
            states[:, places, SINK_DIMS[0]] = 60.0
        return args, {**kwargs, "inputs_embeds": states}

    model.model.language_model.register_forward_pre_hook(enlarge, with_kwargs=True)


def inputs(rows: int = 2, *, text: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(2, 50, (rows, 3 + text), generator=generator)
    ids = torch.cat((words[:, :3], torch.full((rows, PATCHES), IMAGE), words[:, 3:]), dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(rows, 3, 12, 12, generator=generator),
    }


def scores(model: Any, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**given).logits


def test_images_and_planted_sinks_are_found() -> None:
    model = small_llava()
    plant(model, [0, 5, 7])
    seen = redistribute_visual(model, sink_dims=SINK_DIMS, tau=3.0)
    scores(model, inputs())
    assert seen.image is not None
    assert seen.image.nonzero()[:, 1].tolist() == 2 * list(range(3, 3 + PATCHES))
    assert sorted(seen.sinks) == [2]
    assert [row.nonzero().flatten().tolist() for row in seen.sinks[2]] == [[0, 5, 7]] * 2


def test_rows_are_those_of_the_equation_on_whole_matrices() -> None:
    """Layer 2 of 4 alone is changed: its attention is written out with the weights that the eager form returns."""
    ours, own = small_llava(), small_llava("eager")
    for model in (ours, own):
        plant(model, [0, 5, 7])
    redistribute_visual(ours, sink_dims=SINK_DIMS, tau=3.0, p=RULE.p, rho=RULE.rho, summ=RULE.summ)
    given, kept = inputs(), {}
    layer = own.model.language_model.layers[2]

    def enter(module: Any, args: Any, kwargs: Any) -> None:
        kept["states"] = args[0] if args else kwargs["hidden_states"]

    def replaced(module: Any, args: Any, kwargs: Any, result: Any) -> Any:
        weights, x = result[1], kwargs["hidden_states"]
        image = given["input_ids"] == IMAGE
        sinks = sink_tokens(kept["states"], SINK_DIMS, tau=3.0)
        changed = redistribute(weights, image, sinks, RULE, rows=after_image(image, queries=x.shape[1]))
        kept["selected"] = changed.selected
        v = module.v_proj(x).view(*x.shape[:2], 2, 8).transpose(1, 2).repeat_interleave(2, dim=1)
        return module.o_proj((changed.attention @ v).transpose(1, 2).flatten(2)), weights

    layer.register_forward_pre_hook(enter, with_kwargs=True)
    layer.self_attn.register_forward_hook(replaced, with_kwargs=True)
    with torch.no_grad():
        expected = own(**given, output_attentions=True).logits
    assert bool(kept["selected"].any())
    torch.testing.assert_close(scores(ours, given), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"p": 1.0}, {"summ": 1.0}, {"begin": 4}])
def test_without_a_budget_or_a_head_nothing_changes(options: dict[str, Any]) -> None:
    ours, own = small_llava(), small_llava()
    for model in (ours, own):
        plant(model, [0, 5, 7])
    redistribute_visual(ours, sink_dims=SINK_DIMS, tau=3.0, **options)
    torch.testing.assert_close(scores(ours, inputs()), scores(own, inputs()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}])
def test_generate_with_and_without_cache_gives_the_same_tokens(options: dict[str, Any]) -> None:
    model = small_llava()
    plant(model, [0, 5, 7])
    redistribute_visual(model, sink_dims=SINK_DIMS, tau=3.0, p=0.2, rho=RULE.rho, summ=RULE.summ)
    given = inputs()
    expected = given["input_ids"]
    beams = {key: value for key, value in options.items() if key == "num_beams"}
    made = model.generate(**given, max_new_tokens=6, do_sample=False, suppress_tokens=[IMAGE], **options)
    if not beams:
        for _ in range(6):
            ids = {**given, "input_ids": expected, "attention_mask": torch.ones_like(expected)}
            last = scores(model, ids)[:, -1].index_fill(1, torch.tensor([IMAGE]), -torch.inf)
            expected = torch.cat((expected, last.argmax(dim=-1, keepdim=True)), dim=1)
        assert torch.equal(made, expected)
    assert made.shape == (2, given["input_ids"].shape[1] + 6)


def test_left_padding_changes_no_row() -> None:
    model = small_llava()
    plant(model, [5, 9])
    redistribute_visual(model, sink_dims=SINK_DIMS, tau=3.0, rho=RULE.rho, summ=RULE.summ)
    given = inputs(1)
    padded = {
        "input_ids": torch.nn.functional.pad(given["input_ids"], (2, 0), value=0),
        "attention_mask": torch.nn.functional.pad(given["attention_mask"], (2, 0), value=0),
        "pixel_values": given["pixel_values"],
    }
    plain = small_llava()
    plant(plain, [3, 7])
    redistribute_visual(plain, sink_dims=SINK_DIMS, tau=3.0, rho=RULE.rho, summ=RULE.summ)
    positions = torch.cat((torch.zeros(1, 2), torch.arange(18)[None]), dim=1).long()
    with torch.no_grad():
        found = model(**padded, position_ids=positions).logits[:, 2:]
    torch.testing.assert_close(found, scores(plain, given), rtol=1e-4, atol=1e-5)


def test_a_prompt_without_an_image_is_left_alone_with_a_warning() -> None:
    ours, own = small_llava(), small_llava()
    redistribute_visual(ours, sink_dims=SINK_DIMS, tau=3.0)
    ids = {"input_ids": torch.randint(2, 50, (1, 7))}
    with pytest.warns(UserWarning, match="the prompt has no image tokens"):
        found = scores(ours, ids)
    torch.testing.assert_close(found, scores(own, ids), rtol=1e-4, atol=1e-5)


def test_sink_dimensions_are_detected_at_the_first_token() -> None:
    model = small_llava()
    plant(model, [0])
    assert redistribute_visual(model, tau=3.0).sink_dims == (SINK_DIMS[0],)


def test_ill_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"LlamaConfig names no image_token_id"):
        redistribute_visual(small_llava().model.language_model)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got 1.5"):
        redistribute_visual(small_llava(), p=1.5)
    with pytest.raises(ValueError, match=r"tau must be at least 0 and below"):
        redistribute_visual(small_llava(), sink_dims=SINK_DIMS, tau=20.0)
    with pytest.raises(ValueError, match=r"sink_dims must lie between 0 and dim - 1 = 31, got 32"):
        redistribute_visual(small_llava(), sink_dims=(32,), tau=3.0)
    with pytest.raises(ValueError, match=r"regard_var needs redistribute_visual\(model\) first"):
        scores(small_llava("regard_var"), inputs())
