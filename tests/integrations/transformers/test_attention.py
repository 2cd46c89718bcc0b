"""Mechanisms inside transformers' models: equal to the models' own attention where they see everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import DECODERS, ENCODERS, continued, decoder, encoder, prompt
from transformers import MambaConfig, MambaForCausalLM, T5Config, T5ForConditionalGeneration

from regard.integrations.transformers import new_cache, register
from regard.mixers.sequence.streaming_llm import StreamingLLMAttention

SIDES = ("left", "right")
SEE_ALL: dict[str, dict[str, Any]] = {
    "hip": {"mask_k": 64, "window": 32, "dense_layers": 0},
    "recycled": {"top_k": 64, "stride": 3},
    "h2o": {"cache_size": 64},
    "streaming_llm": {"cache_size": 64},
}
SEE_LITTLE: dict[str, dict[str, Any]] = {
    "hip": {"mask_k": 6, "block_q": 4, "block_k": 2, "window": 5, "sinks": 1, "refresh": 3, "dense_layers": 0},
    "recycled": {"top_k": 6, "stride": 4},
    "h2o": {"cache_size": 6},
    "streaming_llm": {"cache_size": 6, "num_sinks": 2},
}
STATEFUL = ("softmax", *SEE_ALL)
PLAIN_ROTARY = {"partial_rotary_factor": 1.0, "rope_type": "default", "rope_theta": 10000.0}


@pytest.fixture(autouse=True)
def _registered() -> None:
    register(SEE_ALL)


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["softmax", "hip"])
@pytest.mark.parametrize("kind", DECODERS)
def test_logits_are_those_of_the_models_own_attention(kind: str, name: str, side: str) -> None:
    ours, own = decoder(kind, f"regard_{name}"), decoder(kind)
    for lengths in ([23], [23, 9, 17], [1, 1], [1, 7]):
        inputs = prompt(lengths, side=side)
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(logits(ours, inputs)[real], logits(own, inputs)[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
def test_bidirectional_models_keep_their_outputs(kind: str) -> None:
    ours, own = encoder(kind, "regard_softmax"), encoder(kind)
    inputs: dict[str, Any] = prompt([11, 4, 7], side="right")
    real = inputs["attention_mask"].bool()
    if kind == "vit":
        inputs, real = {"pixel_values": torch.randn(2, 3, 12, 12)}, torch.ones(2, 10, dtype=torch.bool)
    with torch.no_grad():
        found, expected = (model(**inputs).last_hidden_state[real] for model in (ours, own))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_a_models_output_where_it_is_dropped() -> None:
    """The check above can fail: without its mask function, the same attention sees padding."""
    from transformers import AttentionMaskInterface

    inputs, own = prompt([11, 4], side="left"), decoder("llama")
    expected = logits(own, inputs)
    ours = decoder("llama", "regard_softmax")
    found = AttentionMaskInterface()._global_mapping.pop("regard_softmax")
    try:
        dropped = logits(ours, inputs)
    finally:
        AttentionMaskInterface.register("regard_softmax", found)
    assert float((dropped - expected)[1, -1].abs().max()) > 1e-2


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 3}])
@pytest.mark.parametrize("name", ["softmax", "hip"])
@pytest.mark.parametrize("kind", DECODERS)
def test_generate_gives_the_models_own_tokens(kind: str, name: str, options: dict[str, Any]) -> None:
    inputs = prompt([13, 6, 1], side="left")
    own = continued(decoder(kind), inputs, **options)
    assert torch.equal(continued(decoder(kind, f"regard_{name}"), inputs, **options), own)


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("kind", DECODERS)
def test_generate_with_the_mechanisms_cache_gives_the_models_own_tokens(kind: str, name: str) -> None:
    inputs = prompt([13, 6, 1], side="left")
    changed = {"rope_parameters": PLAIN_ROTARY} if kind == "gpt_neox" else {}
    ours, own = decoder(kind, f"regard_{name}", **changed), decoder(kind, **changed)
    for beams in (1, 3):
        expected = continued(own, inputs, num_beams=beams)
        cache = new_cache(ours, name)
        assert torch.equal(continued(ours, inputs, num_beams=beams, past_key_values=cache), expected)


@pytest.mark.parametrize("side", SIDES)
def test_hip_in_a_model_is_the_same_with_padding(side: str) -> None:
    register(SEE_LITTLE)
    model = decoder("llama", "regard_hip")
    inputs = prompt([61, 40, 3], side=side)
    together = logits(model, inputs)
    assert float((together - logits(decoder("llama"), inputs))[0].abs().max()) > 1e-3
    for row, real in enumerate(inputs["attention_mask"].bool()):
        alone = logits(model, {"input_ids": inputs["input_ids"][row][real][None]})
        torch.testing.assert_close(together[row][real], alone[0], rtol=1e-4, atol=1e-4)


def test_hip_decodes_alike_with_every_cache_of_transformers() -> None:
    register(SEE_LITTLE)
    model, inputs = decoder("llama", "regard_hip"), prompt([50, 33], side="left")
    dynamic = continued(model, inputs)
    assert torch.equal(continued(model, inputs, cache_implementation="static"), dynamic)


@pytest.mark.parametrize("name", SEE_LITTLE)
def test_rows_that_share_a_cache_do_not_meet(name: str) -> None:
    register(SEE_LITTLE)
    model, inputs = decoder("llama", f"regard_{name}"), prompt([50, 33], side="left")
    together = continued(model, inputs, 15, past_key_values=new_cache(model, name))
    assert not torch.equal(together, continued(decoder("llama"), inputs, 15))
    for row, real in enumerate(inputs["attention_mask"].bool()):
        alone = {key: tensor[row][real][None] for key, tensor in inputs.items()}
        assert torch.equal(continued(model, alone, 15, past_key_values=new_cache(model, name))[0], together[row])


def test_a_streamed_model_is_the_mechanism_on_keys_before_rotation() -> None:
    """One layer, one head: what the model's attention gives is the reference on its own projections."""
    register({"streaming_llm": {"cache_size": 6, "num_sinks": 2}})
    model, inputs = decoder("llama", num_hidden_layers=1), prompt([23], side="left")
    module, kept = model.model.layers[0].self_attn, {}
    module.register_forward_hook(
        lambda module, args, kwargs, result: kept.update(x=kwargs["hidden_states"], y=result[0]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs, past_key_values=new_cache(model, "streaming_llm"))
        mixer = StreamingLLMAttention(32, num_heads=4, num_kv_heads=2, cache_size=6, num_sinks=2, rope_base=10000.0)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(mixer, name).weight.copy_(getattr(module, name).weight)
        mixer.o_proj.bias.zero_()
        torch.testing.assert_close(kept["y"], mixer(kept["x"]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["recycled", "h2o", "streaming_llm"])
def test_a_mechanism_with_a_state_asks_for_its_cache(name: str) -> None:
    model = decoder("llama", f"regard_{name}")
    with pytest.raises(ValueError, match=rf"needs its own cache: pass past_key_values=new_cache\(model, '{name}'\)"):
        continued(model, prompt([9], side="left"))


def test_keys_that_cannot_be_turned_back_are_refused() -> None:
    with pytest.raises(ValueError, match=r"streaming_llm places keys anew.*turns 0.25 of each head"):
        new_cache(decoder("gpt_neox"), "streaming_llm")


def test_dense_layers_attend_in_full() -> None:
    inputs = prompt([61], side="left")
    register({"hip": {**SEE_LITTLE["hip"], "dense_layers": 2}})
    own = logits(decoder("llama"), inputs)
    torch.testing.assert_close(logits(decoder("llama", "regard_hip"), inputs), own, rtol=1e-4, atol=1e-5)


def test_gradients_pass_through() -> None:
    inputs = prompt([9, 5], side="right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    losses = []
    for attention in ("sdpa", "regard_hip"):
        model = decoder("llama", attention)
        model(**inputs, labels=labels).loss.backward()
        losses.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-6)


def test_compiles_without_a_break() -> None:
    model, inputs = decoder("llama", "regard_softmax"), prompt([9], side="right")
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    torch.testing.assert_close(logits(compiled, {"input_ids": inputs["input_ids"]}), logits(model, inputs))


# --------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ValueError, match=r"regard_hip is causal, and BertSelfAttention attends in both directions"):
        encoder("bert", "regard_hip")(**prompt([5], side="right"))
    model = decoder("llama", "regard_hip")
    square = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"regard_hip keeps causal and bidirectional masks with padding"):
        model(input_ids=prompt([5], side="right")["input_ids"], attention_mask=square)
    model.config.attention_dropout = 0.1
    trained = decoder("llama", "regard_hip", attention_dropout=0.1).train()
    with pytest.raises(ValueError, match=r"regard_hip has no dropout of weights, got 0.1"):
        trained(**prompt([5], side="right"))


def test_models_whose_layers_are_of_another_kind_have_no_cache_here() -> None:
    sizes = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 1}
    with pytest.raises(ValueError, match="MambaForCausalLM has layers of other kinds, linear_attention"):
        new_cache(MambaForCausalLM(MambaConfig(**sizes)), "hip")
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has an encoder beside its decoder"):
        new_cache(T5ForConditionalGeneration(T5Config(vocab_size=61, d_model=16, d_ff=16, num_layers=1)), "hip")
    with pytest.raises(ValueError, match="a cache needs a model of transformers, got Linear"):
        new_cache(torch.nn.Linear(2, 2), "hip")


def test_packed_sequences_are_refused_or_kept() -> None:
    ids = prompt([12], side="right")["input_ids"]
    places = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    own = decoder("llama")(input_ids=ids, position_ids=places, use_cache=False).logits
    kept = decoder("llama", "regard_softmax")(input_ids=ids, position_ids=places, use_cache=False).logits
    torch.testing.assert_close(kept, own, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"this model asks for another one"):
        decoder("llama", "regard_hip")(input_ids=ids, position_ids=places, use_cache=False)


def test_a_cache_serves_the_attention_it_was_made_for() -> None:
    model, inputs = decoder("llama"), prompt([9], side="right")
    cache = new_cache(model, "hip")
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=r"the cache is one of regard_hip, and the model's attention is not"):
        continued(model, inputs, past_key_values=cache)
    cache = new_cache(model, "hip")
    model.set_attn_implementation("regard_softmax")
    with pytest.raises(
        ValueError, match=r"the cache is one of regard_hip, and the model's attention is regard_softmax"
    ):
        continued(model, inputs, past_key_values=cache)


def test_a_cache_cannot_be_cropped_but_used_again() -> None:
    model, inputs = decoder("llama", "regard_hip"), prompt([9], side="right")
    cache = new_cache(model, "hip")
    first = continued(model, inputs, past_key_values=cache)
    with pytest.raises(ValueError, match=r"cannot forget its latest tokens"):
        cache.layers[0].crop(-1)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(continued(model, inputs, past_key_values=cache), first)


def test_unknown_names_and_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"no mechanism 'hop' of ours, only h2o, hip, "):
        register({"hop": {}})
    with pytest.raises(ValueError, match=r"mask_k must be a positive multiple of block_k=2, got 7"):
        register({"hip": {"mask_k": 7}})
    with pytest.raises(TypeError, match="budget"):
        register({"hip": {"budget": 7}})
    with pytest.raises(ValueError, match=r"a cache needs a model of transformers, got Linear"):
        new_cache(torch.nn.Linear(2, 2), "hip")
