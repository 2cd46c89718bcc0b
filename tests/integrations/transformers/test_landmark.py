"""Retrieval of blocks in transformers' models: full attention where all blocks are seen, and what holds beyond."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import DECODERS, VOCAB, continued, decoder, prompt
from torch import Tensor

from regard.integrations.transformers import new_cache, register
from regard.integrations.transformers.mechanism import InsertedLandmarks
from regard.integrations.transformers.pretrained import cache_bytes, continue_text, read_prompt, with_landmarks
from regard.layers.block_memory import BlockMemory, empty_block_memory
from regard.mixers.sequence.landmark import LandmarkAttention
from regard.ops.block_retrieval import BlockRetrieval
from regard.tasks.generation import Sampling

BLOCK = 7
SIZES = BlockRetrieval(block_size=BLOCK, top_k=2, recent=1, sinks=1)
OPTIONS: dict[str, Any] = {"block_size": BLOCK, "top_k": 2, "recent": 1, "sinks": 1}
IN_FULL = BLOCK * (SIZES.seen_blocks + 1)
"""Up to here every block is seen."""
GREEDY = Sampling(temperature=0)


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


def model_of(kind: str, **changed: Any) -> Any:
    """Every head turned as a whole."""
    rotary = {"partial_rotary_factor": 1.0, "rope_type": "default", "rope_theta": 10000.0}
    return decoder(kind, **({"rope_parameters": rotary} if kind == "gpt_neox" else {}), **changed)


def logits(model: Any, inputs: dict[str, Any], **options: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, **options).logits


# ------------------------------------------------------------------------------------------- where it is attention


@pytest.mark.parametrize("kind", DECODERS)
def test_it_is_full_attention_up_to_the_last_block_that_sees_all(kind: str) -> None:
    model, inputs = model_of(kind), prompt([IN_FULL + 9], side="left")
    own = logits(model, inputs)
    found = logits(model, inputs, past_key_values=new_cache(model, "landmark", **OPTIONS))
    torch.testing.assert_close(found[:, :IN_FULL], own[:, :IN_FULL], rtol=1e-4, atol=1e-4)
    assert float((found - own)[:, IN_FULL].abs().max()) > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", DECODERS)
def test_padding_is_never_seen(kind: str, side: str) -> None:
    model = model_of(kind)
    for lengths in ([23, 9, 17], [1, 1], [IN_FULL, 5]):
        inputs = prompt(lengths, side=side)
        real, own = inputs["attention_mask"].bool(), logits(model, inputs)
        found = logits(model, inputs, past_key_values=new_cache(model, "landmark", **OPTIONS))
        torch.testing.assert_close(found[real], own[real], rtol=1e-4, atol=1e-4)
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", DECODERS)
def test_generate_gives_the_models_own_tokens(kind: str, beams: int) -> None:
    model, inputs = model_of(kind), prompt([IN_FULL - 12, 6, 1], side="left")
    own = continued(model, inputs, num_beams=beams)
    cache = new_cache(model, "landmark", **OPTIONS)
    assert torch.equal(continued(model, inputs, num_beams=beams, past_key_values=cache), own)


# --------------------------------------------------------------------------------------------------- and beyond


@pytest.mark.parametrize("max_len", [None, 90])
@pytest.mark.parametrize("chunk", [1, 5, BLOCK, 40])
def test_how_a_prompt_is_cut_changes_nothing(chunk: int, max_len: int | None) -> None:
    model, ids = model_of("llama"), prompt([83], side="left")["input_ids"][0]
    whole = read_prompt(model, ids, new_cache(model, "landmark", **OPTIONS), chunk=83)
    pieces = read_prompt(model, ids, new_cache(model, "landmark", max_len=max_len, **OPTIONS), chunk=chunk)
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", DECODERS)
def test_padded_rows_are_the_same_rows_alone(kind: str, side: str) -> None:
    model, inputs = model_of(kind), prompt([83, 50, 3], side=side)
    together = logits(model, inputs, past_key_values=new_cache(model, "landmark", **OPTIONS))
    for row, real in enumerate(inputs["attention_mask"].bool()):
        alone = {"input_ids": inputs["input_ids"][row][real][None]}
        expected = logits(model, alone, past_key_values=new_cache(model, "landmark", **OPTIONS))[0]
        torch.testing.assert_close(together[row][real], expected, rtol=1e-4, atol=1e-4)


def test_rows_that_share_a_cache_do_not_meet() -> None:
    model, inputs = model_of("llama"), prompt([80, 63], side="left")
    own = continued(model, inputs, 15)
    together = continued(model, inputs, 15, past_key_values=new_cache(model, "landmark", **OPTIONS))
    assert not torch.equal(together, own)
    for row, real in enumerate(inputs["attention_mask"].bool()):
        alone = {key: tensor[row][real][None] for key, tensor in inputs.items()}
        cache = new_cache(model, "landmark", **OPTIONS)
        assert torch.equal(continued(model, alone, 15, past_key_values=cache)[0], together[row])


def test_beams_equal_beams_of_the_same_row_alone() -> None:
    model, inputs = model_of("llama"), prompt([80, 63], side="left")
    together = continued(model, inputs, num_beams=3, past_key_values=new_cache(model, "landmark", **OPTIONS))
    real = inputs["attention_mask"][1].bool()
    alone = {key: tensor[1][real][None] for key, tensor in inputs.items()}
    cache = new_cache(model, "landmark", **OPTIONS)
    assert torch.equal(continued(model, alone, num_beams=3, past_key_values=cache)[0], together[1])


def first_layer(model: Any, ids: Tensor, **given: Any) -> tuple[Any, Tensor, Tensor]:
    """The attention module of the first layer, what enters it and what it returns."""
    module, kept = model.model.layers[0].self_attn, {}
    handle = module.register_forward_hook(
        lambda module, args, kwargs, result: kept.update(x=kwargs["hidden_states"], y=result[0]), with_kwargs=True
    )
    with torch.no_grad():
        model(input_ids=ids, **given)
    handle.remove()
    return module, kept["x"], kept["y"]


def test_a_layer_is_the_memory_on_its_projections_before_they_are_turned() -> None:
    model, ids = model_of("llama"), prompt([83], side="left")["input_ids"]
    module, x, found = first_layer(model, ids, past_key_values=new_cache(model, "landmark", **OPTIONS))
    sizes = BlockRetrieval(**OPTIONS, rope_base=10000.0)
    with torch.no_grad():
        q, k, v = (
            project(x).unflatten(2, (-1, 8)).transpose(1, 2)
            for project in (module.q_proj, module.k_proj, module.v_proj)
        )
        heads = {"num_kv_heads": 2, "head_dim": 8, "value_dim": 8}
        memory = empty_block_memory(1, sizes, **heads, max_len=None, offload="none", like=k)
        expected = module.o_proj(memory.attend(q, k, v, sizes)[0].transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_where_blocks_lie_changes_nothing(offload: str) -> None:
    model, inputs = model_of("llama"), prompt([80, 63], side="left")
    beside = continued(model, inputs, num_beams=2, past_key_values=new_cache(model, "landmark", **OPTIONS))
    cache = new_cache(model, "landmark", **OPTIONS, offload=offload)
    assert torch.equal(continued(model, inputs, num_beams=2, past_key_values=cache), beside)


def test_memory_is_set_aside_once() -> None:
    model, ids = model_of("llama"), prompt([83], side="left")["input_ids"][0]
    cache = new_cache(model, "landmark", max_len=90, **OPTIONS)
    read_prompt(model, ids, cache, chunk=20)
    (state, _) = (layer.state for layer in cache.layers)
    assert isinstance(state, BlockMemory)
    assert state.keys.shape[2] == -(-90 // BLOCK)
    assert cache_bytes(cache) == sum(layer.state.nbytes for layer in cache.layers)
    cache.reset()
    assert cache.get_seq_length() == 0


# --------------------------------------------------------------------------------------------- trained landmarks


TOKENS: dict[str, Any] = {"block_size": 4, "top_k": 2, "window": 15}
MARK = VOCAB - 1


def test_a_model_with_landmarks_attends_as_the_mixer_does() -> None:
    model, ids = model_of("llama", num_hidden_layers=1), prompt([67], side="left")["input_ids"]
    ids = with_landmarks(ids[0], InsertedLandmarks(4, MARK))[None]
    module, x, found = first_layer(model, ids, past_key_values=new_cache(model, "landmark_tokens", **TOKENS))
    mixer = LandmarkAttention(32, num_heads=4, num_kv_heads=2, block_size=4, top_k=2, rope_base=10000.0)
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(mixer, name).weight.copy_(getattr(module, name).weight)
        state, expected = mixer.init_state(1), []
        for window in x.split(15, dim=1):
            y, state = mixer.step(window, state)
            expected.append(y)
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 4, 11, 12, 13])
def test_landmarks_stand_behind_every_block(tokens: int) -> None:
    ids = torch.arange(tokens)
    found = with_landmarks(ids, InsertedLandmarks(4, MARK)).tolist()
    expected: list[int] = []
    for number in range(tokens):
        if number and number % 4 == 0:
            expected.append(MARK)
        expected.append(number)
    assert found == expected


@pytest.mark.parametrize("tokens", [9, 11, 12])
def test_landmarks_go_on_behind_the_prompt(tokens: int) -> None:
    """What follows is what one gets by hand: a landmark before each new block, whose scores nobody looks at."""
    landmarks = InsertedLandmarks(4, MARK)
    model, ids = model_of("llama"), prompt([tokens], side="left")["input_ids"][0]
    cache = new_cache(model, "landmark_tokens", landmark_id=MARK, **TOKENS)
    scores = read_prompt(model, with_landmarks(ids, landmarks), cache)
    found = list(continue_text(model, scores, cache, count=14, sampling=GREEDY, landmarks=landmarks))
    cache, made = new_cache(model, "landmark_tokens", **TOKENS), ids.tolist()
    scores = read_prompt(model, with_landmarks(ids, landmarks), cache)[0]
    for number in range(tokens, tokens + 14):
        made.append(int(scores.argmax()))
        for each in ([MARK] if number % 4 == 0 else []) + made[-1:]:
            scores = logits(model, {"input_ids": torch.tensor([[each]])}, past_key_values=cache)[0, -1]
    assert found == made[tokens:]


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["landmark", "landmark_tokens"])
def test_keys_that_cannot_be_turned_back_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} places keys anew.*turns 0.25 of each head$"):
        new_cache(decoder("gpt_neox"), name)
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ValueError, match=rf"{name} places keys anew.*'linear'"):
        new_cache(decoder("llama", rope_parameters=scaled), name)


def test_ill_arguments_are_named() -> None:
    model = model_of("llama")
    with pytest.raises(ValueError, match="recent must be at least 0 blocks, got -1"):
        new_cache(model, "landmark", recent=-1)
    with pytest.raises(ValueError, match="offload must be one of none, cpu, disk, got 'tape'"):
        new_cache(model, "landmark", offload="tape")
    with pytest.raises(ValueError, match="got window=0 and landmark_id=None"):
        new_cache(model, "landmark_tokens", window=0)
    with pytest.raises(ValueError, match="max_len must be at least 1 token, got 0"):
        new_cache(model, "landmark", max_len=0)
    with pytest.raises(TypeError, match="budget"):
        new_cache(model, "landmark", budget=3)


def test_it_needs_its_cache_and_no_gradients() -> None:
    inputs = prompt([9], side="left")
    with pytest.raises(ValueError, match=r"new_cache\(model, 'landmark'\)"):
        continued(decoder("llama", "regard_landmark"), inputs)
    model = model_of("llama")
    with pytest.raises(ValueError, match="no gradients: call the model under"):
        model(**inputs, past_key_values=new_cache(model, "landmark"))


@pytest.mark.parametrize("name", ["softmax", "hip", "recycled"])
def test_what_keeps_all_keys_takes_no_more_than_it_has_room_for(name: str) -> None:
    model, inputs = model_of("llama"), prompt([21], side="left")
    expected = continued(model, inputs, 5)
    assert torch.equal(continued(model, inputs, 5, past_key_values=new_cache(model, name, max_len=25)), expected)
    with pytest.raises(ValueError, match=r"has room for max_len=2[56] tokens"):
        continued(model, inputs, 9, past_key_values=new_cache(model, name, max_len=25))
