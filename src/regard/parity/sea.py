"""Parity with gmlwns2000/sea-attention: the whole attention between projections, its estimate, its choice, its loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import pad

from regard.layers.attention_estimator import EstimatorSizes
from regard.layers.estimated_attention import EstimatedAttention
from regard.layers.perlin_names import reference_name, without_effect
from regard.ops.estimated_attention import kept_attention_weights
from regard.ops.heads import merge_heads, split_heads
from regard.parity.adapters import Case, Leaf, Outcome, Reshaped, adapter


class WithMaskedRows:
    """A kernel that the reference holds with further rows, whose gradient is always zero.

    Args:
        kernel: ours, `(out_channels, in_channels, height, width)`.
        height: the reference's height.
    """

    def __init__(self, kernel: Tensor, height: int) -> None:
        self._kernel, self._more = kernel, height - kernel.shape[2]

    def parts(self) -> list[Tensor]:
        """Our tensors, of which gradients are taken."""
        return [self._kernel]

    def assemble(self, gradients: Sequence[Tensor]) -> Tensor:
        """The gradient with the rows that ours does not have."""
        return pad(gradients[0], (0, 0, 0, self._more))


def _leaf(ours: Tensor, theirs: Tensor) -> Leaf:
    if ours.shape == theirs.shape:
        return ours
    if ours.ndim == 4:
        return WithMaskedRows(ours, theirs.shape[2])
    return Reshaped(ours, theirs.shape)


@adapter("src/models/perlin_attention/attention.py:PerlinAttention (non-benchmark dense path)")
def perlin_attention(case: Case) -> Outcome:
    """Everything between the projections; the reference's masks are added, ours are boolean."""
    config = case.config
    causal = config["causal"]
    attention = EstimatedAttention(
        EstimatorSizes(
            num_heads=config["num_attention_heads"],
            head_dim=config["attention_head_size"],
            causal=causal,
            keys_per_query=config["k"],
            estimate_width=config["attention_predictor_length"],
            pooling=config["k_flatten_dim"] if config["k_flatten"] else "query",
            feature_divisor=config["performer_nb_factor"],
            max_positions=config["max_position_embeddings"],
            as_compared=True,
        )
    )
    attention.load_reference(case.state)
    attention.train(case.mode == "train")
    q, k, v = (case.inputs[name] for name in ("q", "k", "v"))
    # the last query's row tells which keys are real
    mask = case.inputs["attention_mask"][:, 0, -1] == 0
    estimate = attention.estimate(q, k, v, mask=mask)
    kept = attention.keep(estimate, mask=mask)
    context = split_heads(case.inputs["context_layer_truth"], config["num_attention_heads"])
    mixed, loss = attention.lesson(q, k, v, case.inputs["attention_scores_truth"], context, mask=mask)
    gate, _ = attention.gates_of(estimate.encoded)
    parameters = dict(attention.named_parameters())
    leaves: dict[str, Leaf] = {"in.q": q, "in.k": k, "in.v": v}
    for name, theirs in case.state.items():
        ours = reference_name(name)
        if ours in parameters and not without_effect(name, causal=causal):
            leaves[name] = _leaf(parameters[ours], theirs)
    return Outcome(
        outputs={
            "context_layer": merge_heads(mixed),
            "estimated_attention_probs_m": estimate.probabilities,
            "estimated_attention_probs_t": attention.estimated_map(estimate, mask=mask),
            "keep_mask": kept.to(q.dtype),
            "partial_attention_probs": gate * kept_attention_weights(q, k, kept, scale=attention.scale),
            "loss": loss.reshape(1),
        },
        leaves=leaves,
        losses={"loss": loss},
    )
