"""Decision Transformer around any causal mixer: actions from the return still wanted and what was seen and done.

Papers: "Attention as an RNN", Feng et al., 2024, https://arxiv.org/abs/2405.13956, section 4 (reinforcement learning;
the authors published no code), and its baseline, "Decision Transformer: Reinforcement Learning via Sequence Modeling",
Chen et al., NeurIPS 2021, https://arxiv.org/abs/2106.01345, algorithm 1.
A time step is three tokens: return-to-go, observation, action; each gets the learned embedding of the time step, and a
norm follows. The action is read after the observation.
Different from the baseline: the mixers' positions come from time steps alone, and the activation is a GELU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.layers.encoder_block import EncoderState
from regard.metadata import Variant
from regard.models.series.base import AAREN_SETTINGS, SeriesConfig, SeriesModel, check_sizes
from regard.registry import register

TOKENS_PER_STEP = 3


@dataclass(frozen=True, kw_only=True)
class DecisionTransformerConfig(SeriesConfig):
    """The network's sizes; the encoder's are those of `SeriesConfig`.

    Args:
        observation_dim: numbers per observation.
        action_dim: numbers per action.
        context_steps: time steps in a training window.
        max_episode_steps: time steps in an episode, at most: each has an embedding.
        max_action: bound on every number of an action, by a tanh; None = unbounded.
    """

    dim: int = 128
    num_layers: int = 3
    num_heads: int = 1
    hidden: int = 512
    observation_dim: int = 17
    action_dim: int = 6
    context_steps: int = 20
    max_episode_steps: int = 1000
    max_action: float | None = 1.0

    def __post_init__(self) -> None:
        check_sizes(self, "observation_dim", "action_dim", "context_steps", "max_episode_steps")
        if self.max_action is not None and not self.max_action > 0:
            raise ValueError(f"max_action must be positive or None, got {self.max_action}")


@register(name="aaren_decision_transformer", system="aaren", paper=AAREN_SETTINGS)
class DecisionTransformer(SeriesModel):
    """Actions as a sequence model predicts them, conditioned on the return that is still wanted.

    Args:
        config: its sizes.

    Raises:
        UnknownSystemError: no such mixer.
        ValueError: a size that is not positive or that the mixer refuses.
    """

    task: ClassVar[str] = "control"
    SMALL: ClassVar[DecisionTransformerConfig] = DecisionTransformerConfig(
        dim=64, num_layers=2, num_heads=1, hidden=128, observation_dim=3, action_dim=1, max_episode_steps=200
    )
    VARIANTS: ClassVar[dict[str, Variant]] = {
        "aaren_dt_halfcheetah": Variant(config=DecisionTransformerConfig(observation_dim=17, action_dim=6)),
        "aaren_dt_hopper": Variant(config=DecisionTransformerConfig(observation_dim=11, action_dim=3)),
        "aaren_dt_walker2d": Variant(config=DecisionTransformerConfig(observation_dim=17, action_dim=6)),
    }

    def __init__(self, config: DecisionTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.return_embedding = nn.Linear(1, config.dim)
        self.observation_embedding = nn.Linear(config.observation_dim, config.dim)
        self.action_embedding = nn.Linear(config.action_dim, config.dim)
        self.step_embedding = nn.Embedding(config.max_episode_steps, config.dim)
        self.embedding_norm = nn.LayerNorm(config.dim)
        self.encoder = config.make_encoder(positions="none")
        self.head = nn.Linear(config.dim, config.action_dim)

    def forward(
        self,
        returns_to_go: Float[Tensor, "batch steps"],
        observations: Float[Tensor, "batch steps observation_dim"],
        actions: Float[Tensor, "batch steps action_dim"],
        timesteps: Int[Tensor, "batch steps"],
        *,
        mask: Bool[Tensor, "batch steps"] | None = None,
    ) -> Float[Tensor, "batch steps action_dim"]:
        """The action of each time step, from its return-to-go and observation and all time steps before it.

        Args:
            returns_to_go: sum of the rewards from each time step to the episode's end, in a unit of order 1.
            observations: what was seen.
            actions: what was done; an action has no influence on its own prediction.
            timesteps: numbers of the time steps in their episode, below `max_episode_steps`.
            mask: True = real time step. Predictions at others have no meaning.

        Raises:
            ValueError: shapes that do not fit.
            IndexError: a time step beyond `max_episode_steps`.
        """
        self._check(returns_to_go, observations, actions, timesteps, mask)
        if mask is not None:
            observations, actions = (torch.where(mask[..., None], x, 0) for x in (observations, actions))
            returns_to_go, timesteps = torch.where(mask, returns_to_go, 0), torch.where(mask, timesteps, 0)
            mask = mask.repeat_interleave(TOKENS_PER_STEP, dim=1, output_size=TOKENS_PER_STEP * mask.shape[1])
        when = self.step_embedding(timesteps)
        tokens = torch.stack(
            (
                self.return_embedding(returns_to_go[..., None]) + when,
                self.observation_embedding(observations) + when,
                self.action_embedding(actions) + when,
            ),
            dim=2,
        )
        states = self.encoder(self.embedding_norm(tokens.flatten(1, 2)), mask=mask)
        return self._act(states[:, 1::TOKENS_PER_STEP])

    def init_state(self, batch: int, *, max_len: int | None = None) -> EncoderState:
        """An empty state at the beginning of `batch` episodes of `max_len` time steps, if that is known."""
        return self.encoder.init_state(batch, max_len=None if max_len is None else TOKENS_PER_STEP * max_len)

    @torch.no_grad()
    def act(
        self,
        returns_to_go: Float[Tensor, " batch"],
        observations: Float[Tensor, "batch observation_dim"],
        state: EncoderState,
        *,
        previous_actions: Float[Tensor, "batch action_dim"] | None = None,
    ) -> tuple[Float[Tensor, "batch action_dim"], EncoderState]:
        """The next action of running episodes, which have seen everything since they began; without gradients.

        Args:
            returns_to_go: the return that is still wanted.
            observations: what is seen now.
            state: from `init_state` or the last `act`; it is consumed.
            previous_actions: what was done in the last time step; None in the first.

        Raises:
            ValueError: shapes that do not fit, or a mixer that does not decode.
            IndexError: a time step beyond `max_episode_steps`.
        """
        config = self.config
        batch = returns_to_go.shape[0]
        shapes = [("observations", observations, config.observation_dim)]
        if previous_actions is not None:
            shapes.append(("previous_actions", previous_actions, config.action_dim))
        for name, given, width in shapes:
            if tuple(given.shape) != (batch, width):
                raise ValueError(f"{name} must have shape ({batch}, {width}), got {tuple(given.shape)}")
        # after t whole time steps 3 t - 1 tokens were seen: the last action comes only now
        now = (state[0].position + 1) // TOKENS_PER_STEP
        when = self.step_embedding(now)
        tokens = [
            self.return_embedding(returns_to_go[:, None]) + when,
            self.observation_embedding(observations) + when,
        ]
        if previous_actions is not None:
            tokens.insert(0, self.action_embedding(previous_actions) + self.step_embedding(now - 1))
        states, state = self.encoder.step(self.embedding_norm(torch.stack(tokens, dim=1)), state)
        return self._act(states[:, -1]), state

    def _act(self, states: Tensor) -> Tensor:
        actions = self.head(states)
        return actions if self.config.max_action is None else self.config.max_action * torch.tanh(actions)

    def _check(
        self, returns_to_go: Tensor, observations: Tensor, actions: Tensor, timesteps: Tensor, mask: Tensor | None
    ) -> None:
        if returns_to_go.ndim != 2:
            raise ValueError(f"returns_to_go must have shape (batch, steps), got {tuple(returns_to_go.shape)}")
        batch, steps = returns_to_go.shape
        for name, given, wanted in (
            ("observations", observations, (batch, steps, self.config.observation_dim)),
            ("actions", actions, (batch, steps, self.config.action_dim)),
            ("timesteps", timesteps, (batch, steps)),
            ("mask", returns_to_go if mask is None else mask, (batch, steps)),
        ):
            if tuple(given.shape) != wanted:
                raise ValueError(f"{name} must have shape {wanted}, got {tuple(given.shape)}")
