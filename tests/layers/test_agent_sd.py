"""AgentSD's layer: the formula, when agents are used, merging and unmerging around it, the schedule, shared weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from regard.layers.agent_sd import AgentSDAttention, AgentSDSchedule, MergingPhase
from regard.ops.token_merging import match_tokens

PHASE = MergingPhase(cell=(4, 4), ratio=0.4, agent_ratio=0.95)


def layer_of(dim: int = 12, heads: int = 3, **options: object) -> AgentSDAttention:
    projections = [nn.Linear(dim, dim, bias=False) for _ in range(3)]
    return AgentSDAttention(*projections, nn.Linear(dim, dim), num_heads=heads, **options).double().eval()


def by_heads(layer: AgentSDAttention, x: Tensor, agents: Tensor | None) -> Tensor:
    q, k, v = (project(x) for project in (layer.q_proj, layer.k_proj, layer.v_proj))
    width = layer.head_dim
    mixed = []
    for head in range(layer.num_heads):
        own = slice(head * width, (head + 1) * width)
        if agents is None:
            mixed.append((q[..., own] @ k[..., own].transpose(1, 2) * width**-0.5).softmax(dim=-1) @ v[..., own])
            continue
        a = layer.q_proj(agents)[..., own]
        gathered = (a @ k[..., own].transpose(1, 2) * width**-0.5).softmax(dim=-1) @ v[..., own]
        taken = (q[..., own] @ a.transpose(1, 2) * (width**-0.5) ** 0.3).softmax(dim=-1)
        mixed.append(taken @ gathered + 0.075 * v[..., own])
    return layer.o_proj(torch.cat(mixed, dim=-1))


def test_is_the_formula() -> None:
    layer = layer_of()
    x, agents = torch.randn(2, 30, 12).double(), torch.randn(2, 7, 12).double()
    torch.testing.assert_close(layer.attend(x, agents), by_heads(layer, x, agents))
    torch.testing.assert_close(layer.attend(x), by_heads(layer, x, None))


def test_too_many_agents_are_not_used() -> None:
    layer = layer_of()
    x = torch.randn(2, 14, 12).double()
    torch.testing.assert_close(layer.attend(x, x[:, :7]), by_heads(layer, x, None))
    torch.testing.assert_close(layer.attend(x, x[:, :6]), by_heads(layer, x, x[:, :6]))


def test_merges_attends_and_unmerges() -> None:
    layer = layer_of()
    x, metric = torch.randn(2, 96, 12).double(), torch.randn(2, 96, 5).double()
    matching = match_tokens(metric, (8, 12), (4, 4))
    agents = matching.merge(x, 91)
    assert agents.shape[1] == 6
    expected = matching.unmerge(by_heads(layer, matching.merge(x, 38), agents), 38)
    torch.testing.assert_close(layer(x, (8, 12), PHASE, metric=metric, random=False), expected)
    late = AgentSDSchedule().late
    matching = match_tokens(x, (8, 12), (2, 2))
    expected = matching.unmerge(by_heads(layer, matching.merge(x, 38), None), 38)
    torch.testing.assert_close(layer(x, (8, 12), late, random=False), expected)


def test_only_even_batches_choose_at_random() -> None:
    layer = layer_of()
    x = torch.randn(2, 96, 12).double()
    fixed = layer(x, (8, 12), PHASE, random=False)
    chosen = layer(x, (8, 12), PHASE, generator=torch.Generator().manual_seed(0))
    again = layer(x, (8, 12), PHASE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(chosen, again)
    assert not torch.allclose(chosen, fixed)
    torch.testing.assert_close(layer(x[:1], (8, 12), PHASE), fixed[:1])


@pytest.mark.parametrize("space", [(3, 9), (5, 1), (1, 1)])
def test_small_maps_are_attended_to_as_they_are(space: tuple[int, int]) -> None:
    layer = layer_of()
    x = torch.randn(2, space[0] * space[1], 12).double()
    torch.testing.assert_close(layer(x, space, PHASE), by_heads(layer, x, None))


@pytest.mark.parametrize("space", [(9, 7), (4, 5), (13, 11)])
def test_any_map_and_its_gradients(space: tuple[int, int]) -> None:
    layer = layer_of()
    x = torch.randn(2, space[0] * space[1], 12, dtype=torch.float64, requires_grad=True)
    y = layer(x, space, PHASE)
    assert y.shape == x.shape
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert (gradient.abs().sum(dim=-1) > 0).all()


def test_scores_in_float32() -> None:
    layer = layer_of(float32_scores=True)
    x, agents = torch.randn(1, 30, 12), torch.randn(1, 7, 12)
    expected = by_heads(layer, x.double(), agents.double()).detach()
    low = layer.bfloat16().attend(x.bfloat16(), agents.bfloat16())
    assert low.dtype == torch.bfloat16
    assert ((low.double() - expected).norm() / expected.norm()).item() < 0.02


def test_shares_the_weights_of_an_attention() -> None:
    parts = {f"to_{kind}": nn.Linear(12, 12, bias=False) for kind in "qkv"}
    out = nn.ModuleList([nn.Linear(12, 12), nn.Dropout(0.0)])
    layer = AgentSDAttention.around(SimpleNamespace(**parts, to_out=out, heads=3))
    assert layer.k_proj is parts["to_k"]
    x = torch.randn(1, 5, 12)
    torch.testing.assert_close(layer.o_proj(x), out[0](x))
    sequence = nn.Sequential(*out)
    assert AgentSDAttention.around(SimpleNamespace(**parts, to_out=sequence, heads=3)).o_proj is sequence


def test_loads_latent_diffusions_layout() -> None:
    projections = [nn.Linear(6, 6, bias=False) for _ in range(3)]
    layer = AgentSDAttention(*projections, nn.Sequential(nn.Linear(6, 6)), num_heads=2)
    layout = {f"to_{kind}.weight": torch.rand(6, 6) for kind in "qkv"}
    layout |= {"to_out.0.weight": torch.rand(6, 6), "to_out.0.bias": torch.rand(6)}
    layer.load_reference(layout)
    assert torch.equal(layer.v_proj.weight, layout["to_v.weight"])
    with pytest.raises(KeyError, match=r"missing keys: q_proj\.weight"):
        layer.load_reference({name: value for name, value in layout.items() if name != "to_q.weight"})


def test_the_schedule_has_two_phases() -> None:
    schedule = AgentSDSchedule()
    assert [schedule.phase(step) is schedule.early for step in (0, 19, 20, 49)] == [True, True, False, False]
    assert schedule.phase(3, 10) is schedule.early
    assert schedule.phase(4, 10) is schedule.late
    assert replace(schedule, early_share=0.0).phase(0) is schedule.late


def test_ill_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"step must be in \[0, 50\), got 50"):
        AgentSDSchedule().phase(50)
    with pytest.raises(ValueError, match=r"early_share must be in \[0, 1\], got 2"):
        AgentSDSchedule(early_share=2)
    with pytest.raises(ValueError, match=r"cell must be positive, got \(0, 4\)"):
        MergingPhase(cell=(0, 4), ratio=0.4, agent_ratio=0.95)
    with pytest.raises(ValueError, match=r"agent_ratio must be in \[0, 1\], got 1\.5"):
        MergingPhase(cell=(4, 4), ratio=0.4, agent_ratio=1.5)
    with pytest.raises(ValueError, match="multiple of num_heads"):
        layer_of(heads=5)
    with pytest.raises(ValueError, match="x has 12 tokens and the map 4 x 4"):
        layer_of()(torch.zeros(1, 12, 12).double(), (4, 4), PHASE)
