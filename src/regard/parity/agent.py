"""Parity with LeapLabTHU/Agent-Attention: attention of four backbones, two networks, and Stable Diffusion's layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.layers.agent_class_attention import AGENT_CLASS_NAMES, AgentClassAttention
from regard.layers.agent_reduced_attention import AGENT_REDUCED_NAMES, AgentReducedAttention
from regard.layers.agent_sd import AGENT_SD_NAMES, AgentSDAttention
from regard.layers.agent_stripes import AGENT_STRIPE_NAMES, AgentStripeAttention
from regard.mixers.spatial.agent import AGENT_2D_NAMES, AgentAttention2d
from regard.models.vision.agent_pvt import AGENT_PVT_NAMES, AgentPVT, AgentPVTConfig
from regard.models.vision.agent_swin import AGENT_SWIN_NAMES, AgentSwin, AgentSwinConfig
from regard.ops.token_merging import match_tokens
from regard.parity.adapters import Case, Leaf, Outcome, Reshaped, adapter, renamed_leaves


def _loaded(layer: Any, case: Case) -> Any:
    layer.load_reference(case.state)
    return layer.eval()


def _agent_depths(kinds: str, depths: list[int]) -> tuple[int, ...]:
    """A = all blocks of a stage, B = none."""
    return tuple(depth if kind == "A" else 0 for kind, depth in zip(kinds, depths, strict=True))


def _outcome(case: Case, y: Tensor, module: nn.Module, names: Any) -> Outcome:
    """Tables have a first axis of length 1 there."""
    leaves: dict[str, Leaf] = {**case.input_leaves}
    for name, leaf in renamed_leaves(case, module, names).items():
        leaves[name] = Reshaped(leaf, case.state.peek(name).shape)
    return Outcome(outputs={"y": y}, leaves=leaves)


@adapter("agent_transformer/models/agent_deit.py:AgentAttention")
def deit_attention(case: Case) -> Outcome:
    """Tokens of a square map after a class token."""
    config, x = case.config, case.inputs["x"]
    size = (config["window"], config["window"])
    layer = AgentClassAttention(
        config["dim"],
        num_heads=config["num_heads"],
        num_agents=config["agent_num"],
        size=size,
        qkv_bias=config["qkv_bias"],
    )
    return _outcome(case, _loaded(layer, case)(x, size), layer, AGENT_CLASS_NAMES)


@adapter("agent_transformer/models/agent_swin.py:AgentAttention")
def swin_attention(case: Case) -> Outcome:
    """Tokens of a window, which is a map."""
    config, x = case.config, case.inputs["x"]
    size = (config["window_size"][0], config["window_size"][1])
    layer = AgentAttention2d(
        config["dim"],
        num_heads=config["num_heads"],
        num_agents=config["agent_num"],
        window_size=size,
        qkv_bias=config["qkv_bias"],
    )
    y = _loaded(layer, case)(x.transpose(1, 2).unflatten(2, size))
    return _outcome(case, y.flatten(2).transpose(1, 2), layer, AGENT_2D_NAMES)


@adapter("agent_transformer/models/agent_pvt.py:AgentAttention")
def pvt_attention(case: Case) -> Outcome:
    """Keys and values from a reduced map."""
    config, x = case.config, case.inputs["x"]
    size = (case.call["kwargs"]["H"], case.call["kwargs"]["W"])
    layer = AgentReducedAttention(
        config["dim"],
        num_heads=config["num_heads"],
        num_agents=config["agent_num"],
        size=size,
        reduction=config["sr_ratio"],
        qkv_bias=config["qkv_bias"],
    )
    y = _loaded(layer, case)(x.unflatten(1, size))
    return _outcome(case, y.flatten(1, 2), layer, AGENT_REDUCED_NAMES)


@adapter("agent_transformer/models/agent_cswin.py:AgentAttention")
def cswin_attention(case: Case) -> Outcome:
    """One branch, of what is already projected."""
    config, qkv = case.config, case.inputs["qkv"]
    size = (config["resolution"], config["resolution"])
    layer = AgentStripeAttention(
        config["dim"],
        num_heads=config["num_heads"],
        num_agents=config["agent_num"],
        stripe={-1: "whole", 0: "columns", 1: "rows"}[config["idx"]],  # type: ignore[arg-type]
        width=config["split_size"],
        size=size,
    )
    y = _loaded(layer, case)(qkv.permute(1, 2, 0, 3).unflatten(1, size))
    return _outcome(case, y.flatten(1, 2), layer, AGENT_STRIPE_NAMES)


@adapter("agent_transformer/models/agent_pvt.py:PyramidVisionTransformer")
def pvt_model(case: Case) -> Outcome:
    """The whole classifier, the last stage with ordinary attention."""
    config, x = case.config, case.inputs["x"]
    model = AgentPVT(
        AgentPVTConfig(
            image_size=config["img_size"],
            in_channels=config["in_chans"],
            num_classes=config["num_classes"],
            dims=tuple(config["embed_dims"]),
            num_heads=tuple(config["num_heads"]),
            depths=tuple(config["depths"]),
            agent_depths=_agent_depths(config["attn_type"], config["depths"]),
            num_agents=tuple(config["agent_num"]),
            agent_reductions=tuple(int(ratio) for ratio in config["agent_sr_ratios"]),
            reductions=tuple(config["sr_ratios"]),
            mlp_ratios=tuple(config["mlp_ratios"]),
            qkv_bias=config["qkv_bias"],
            patch_size=config["patch_size"],
            norm_eps=1e-5,
        )
    )
    return _outcome(case, _loaded(model, case)(x), model, AGENT_PVT_NAMES)


@adapter("agent_transformer/models/agent_swin.py:AgentSwinTransformer")
def swin_model(case: Case) -> Outcome:
    """The whole classifier, whose first stage has agents in windows that shift."""
    config, x = case.config, case.inputs["x"]
    model = AgentSwin(
        AgentSwinConfig(
            image_size=config["img_size"],
            in_channels=config["in_chans"],
            num_classes=config["num_classes"],
            dims=tuple(config["embed_dim"] << stage for stage in range(len(config["depths"]))),
            num_heads=tuple(config["num_heads"]),
            depths=tuple(config["depths"]),
            agent_depths=_agent_depths(config["attn_type"], config["depths"]),
            num_agents=tuple(config["agent_num"]),
            window_size=config["window_size"],
            mlp_ratio=config["mlp_ratio"],
            patch_size=config["patch_size"],
        )
    )
    return _outcome(case, _loaded(model, case)(x), model, AGENT_SWIN_NAMES)


@adapter("agentsd/patch.py:make_agent_attn")
def sd_attention(case: Case) -> Outcome:
    """Merged tokens and agents, which are merged before."""
    config = case.config
    dim, inner = config["dim"], config["heads"] * config["dim_head"]
    q_proj, k_proj, v_proj = (nn.Linear(dim, inner, bias=False) for _ in range(3))
    layer = AgentSDAttention(
        q_proj,
        k_proj,
        v_proj,
        nn.Sequential(nn.Linear(inner, dim)),
        num_heads=config["heads"],
        query_exponent=config["k_scale2"],
        shortcut=config["k_shortcut"],
    )
    y = _loaded(layer, case).attend(case.inputs["x"], case.inputs["agent"])
    return _outcome(case, y, layer, AGENT_SD_NAMES)


@adapter("agentsd/merge.py:bipartite_soft_matching_random2d")
def sd_merge(case: Case) -> Outcome:
    """Matching, both merged sets, and what comes back."""
    config, x = case.config, case.inputs["x"]
    matching = match_tokens(x, (config["h"], config["w"]), (config["sy"], config["sx"]), random=not config["no_rand"])
    merged = matching.merge(x, config["r"])
    outputs = {
        "merged": _in_their_order(merged),
        "agent": _in_their_order(matching.merge(x, config["agent_r"])),
        "unmerged_of_2x_merged": matching.unmerge(torch.mul(merged, 2), config["r"]),
    }
    return Outcome(outputs=outputs)


_DESTINATIONS = [0, 2, 3, 1]
"""The order of the case's destinations, which ascend here: the reference sorts equal numbers, whose order PyTorch
leaves open."""


def _in_their_order(merged: Tensor) -> Tensor:
    kept = merged.shape[1] - len(_DESTINATIONS)
    return torch.cat((merged[:, :kept], merged[:, kept:][:, _DESTINATIONS]), dim=1)
