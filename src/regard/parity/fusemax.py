"""Parity of the accelerator model with the authors' published results: figures of chips, no network's tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.hardware.cost import Cost, attention_cost
from regard.hardware.designs import design
from regard.hardware.flat_dataflow import Dataflow
from regard.hardware.linear import linear_cost
from regard.hardware.sweep import point
from regard.hardware.workloads import Workload, workload
from regard.parity.adapters import Case, Outcome, adapter

_ATTENTION = {
    "traffic": "traffic_bytes",
    "latency": "latency_s",
    "energy": "energy_pj",
    "util_2d": "util_2d",
    "util_1d": "util_1d",
}
_KILO, _MEGA = 2**10, 2**20
_SQUARE_MICROMETRES = 1e6


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _workloads(case: Case) -> list[Workload]:
    rows = case.inputs["shape"].tolist()
    made = []
    for (model, _), (batch, dim, depth, width, heads, keys, queries, hidden) in zip(
        case.config["workloads"], rows, strict=True
    ):
        made.append(
            Workload(
                model=model.lower(),
                dim=dim,
                num_heads=heads,
                head_dim=depth,
                value_dim=width,
                hidden=hidden,
                keys=keys,
                queries=queries,
                batch=batch,
            )
        )
    return made


def _dataflows(case: Case) -> list[Dataflow]:
    """FLAT's choices as stored: columns Q, K, QK, A, V, AV of what stays on the chip."""
    inputs = case.inputs
    rows = zip(
        case.inputs["shape"][:, 6].tolist(),
        inputs["flat_P1"].tolist(),
        inputs["flat_row_granularity"].tolist(),
        inputs["flat_weight_stationary"].tolist(),
        inputs["flat_onchip"].tolist(),
        inputs["flat_spilled"].tolist(),
        strict=True,
    )
    return [
        Dataflow(
            up_to=length,
            rows=tile if by_row else 0,
            stationary_weights=bool(stationary),
            q=bool(kept[0]),
            k=bool(kept[1]),
            v=bool(kept[4]),
            spilled=spilled,
        )
        for length, tile, by_row, stationary, kept, spilled in rows
    ]


@adapter(
    "workspace/outputs/pregenerated/results/*.csv (authors' own Timeloop/Accelergy runs, tabulated)",
)
def attention_and_linear(case: Case) -> Outcome:
    """Five designs and the linear layers."""
    config, works, flows = case.config, _workloads(case), _dataflows(case)
    outputs: dict[str, Tensor] = {}
    for name in ("unfused", "flat", "cascade", "arch", "binding"):
        chip = design(name)
        assert (chip.array, chip.frequency_hz) == (config["pe"], config["freq_hz"])
        assert chip.bandwidth_bytes_per_s == config["bw_bytes_per_s"]
        costs: list[Cost] = [attention_cost(work, chip, flow=flow) for work, flow in zip(works, flows, strict=True)]
        for reference, own in _ATTENTION.items():
            outputs[f"{name}.{reference}"] = _column([getattr(cost, own) for cost in costs])
    for name, of in (("linear_flat", "flat"), ("linear_proposal", "fusemax")):
        linear = [linear_cost(work, design(of)) for work in works]
        outputs[f"{name}.traffic"] = _column([cost.traffic_bytes for cost in linear])
        outputs[f"{name}.latency"] = _column([cost.latency_s for cost in linear])
        outputs[f"{name}.energy"] = _column([cost.energy_pj for cost in linear])
    return Outcome(outputs=outputs)


@adapter("workspace/outputs/pregenerated/results/pareto.csv")
def pareto(case: Case) -> Outcome:
    """FuseMax at six sizes; areas there are in square micrometres."""
    config = case.config
    length = int(config["seq_len"][:-1]) * {"K": _KILO, "M": _MEGA}[config["seq_len"][-1]]
    arrays = case.inputs["pe"].tolist()
    points = [
        point(workload(model.lower(), length), array) for model, array in zip(config["models"], arrays, strict=True)
    ]
    assert all(each.area_mm2 is not None and each.array_mm2 is not None for each in points)
    return Outcome(
        outputs={
            "area": _column([float(each.area_mm2 or 0.0) * _SQUARE_MICROMETRES for each in points]),
            "array_2d_area": _column([float(each.array_mm2 or 0.0) * _SQUARE_MICROMETRES for each in points]),
            "comp_1d_lat": _column([each.line_s for each in points]),
            "comp_2d_lat": _column([each.square_s for each in points]),
            "latency": _column([each.latency_s for each in points]),
            "mem_lat": _column([each.memory_s for each in points]),
            "traffic": _column([each.traffic_bytes for each in points]),
        }
    )
