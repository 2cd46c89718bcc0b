"""AgentSD in a whole diffusion U-Net: its self-attentions are replaced for the time of sampling.

```python
control = install_agent_sd(unet)
for step, timestep in enumerate(timesteps):
    control.step = step
    ...
control.remove()
```

Paper: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, the section on Stable Diffusion.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agentsd/patch.py:apply_patch`. There classes are exchanged in place;
here the attention `attn1` of every block is another module until `remove`. Cross-attention and perceptrons stay as they
are. A mask, or a context, leads to the original attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regard.layers.agent_sd import AgentSDAttention, AgentSDSchedule
from regard.ops.token_merging import Size

_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out", "heads")


class AgentSDControl:
    """What the replaced layers of a network share, and the way back.

    Args:
        schedule: which phase a step belongs to.
        num_steps: number of sampling steps.
        seed: of the tokens that are chosen in every cell; the global generator is left alone.
    """

    def __init__(self, schedule: AgentSDSchedule, *, num_steps: int = 50, seed: int = 0) -> None:
        schedule.phase(0, num_steps)
        self.schedule = schedule
        self.num_steps = num_steps
        self.step = 0
        self.latent: Size | None = None
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self._replaced: list[tuple[nn.Module, nn.Module]] = []
        self._hooks: list[RemovableHandle] = []

    @property
    def layers(self) -> int:
        """Number of attentions that are replaced."""
        return len(self._replaced)

    def remove(self) -> None:
        """Put the original attentions back."""
        for block, attention in self._replaced:
            block.attn1 = attention
        for hook in self._hooks:
            hook.remove()
        self._replaced.clear()
        self._hooks.clear()

    def space(self, tokens: int) -> Size | None:
        """Rows and columns of a layer's map, or None where the layer is too coarse to merge."""
        if self.latent is None:
            raise RuntimeError("the size of the latent is unknown: the attention was called outside of its network")
        height, width = self.latent
        downsample = math.ceil(math.sqrt(height * width // tokens)) if tokens <= height * width else 1
        if downsample > self.schedule.max_downsample:
            return None
        return (-(-height // downsample), -(-width // downsample))

    def generator(self, device: torch.device) -> torch.Generator:
        """The random numbers of this network on a device."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Before the network runs: how large its latent is."""
        latent = args[0] if args else next(iter(kwargs.values()))
        self.latent = (latent.shape[-2], latent.shape[-1])

    def _replace(self, block: Any, *, float32_scores: bool) -> None:
        layer = _Replaced(block.attn1, self, float32_scores=float32_scores)
        self._replaced.append((block, block.attn1))
        self._hooks.append(block.norm1.register_forward_pre_hook(layer.remember))
        block.attn1 = layer


class _Replaced(nn.Module):
    """A block's self-attention: through agents and merged tokens where the schedule says so."""

    def __init__(self, attention: nn.Module, control: AgentSDControl, *, float32_scores: bool) -> None:
        super().__init__()
        self.attention = attention
        self.agents = AgentSDAttention.around(attention, float32_scores=float32_scores)
        self._control = control
        self._unnormed: Tensor | None = None

    def remember(self, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Keep the block's tokens from before the norm, which are compared."""
        self._unnormed = args[0]

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The arguments of latent diffusion's attention (`context`, `mask`) or of diffusers'."""
        metric, self._unnormed = self._unnormed, None
        given = {
            "context": context,
            "mask": mask,
            "encoder_hidden_states": encoder_hidden_states,
            "attention_mask": attention_mask,
        }
        others = {name: value for name, value in given.items() if value is not None}
        space = self._control.space(x.shape[1])
        if others or space is None:
            return self.attention(x, **others)
        phase = self._control.schedule.phase(self._control.step, self._control.num_steps)
        generator = self._control.generator(x.device)
        return self.agents(x, space, phase, metric=metric, generator=generator)


def install_agent_sd(
    unet: nn.Module,
    *,
    schedule: AgentSDSchedule | None = None,
    num_steps: int = 50,
    float32_scores: bool = False,
    seed: int = 0,
) -> AgentSDControl:
    """Replace the self-attention of every transformer block of a diffusion U-Net.

    Args:
        unet: called with the latent first; its blocks have `norm1` and `attn1`, and that has `to_q`, `to_k`, `to_v`,
            `to_out` and `heads` (latent diffusion's and diffusers' `BasicTransformerBlock`).
        schedule: which steps use agents, and how strongly they merge; None = the authors'.
        num_steps: number of sampling steps.
        float32_scores: compute scores in float32 at least, as Stable Diffusion 2.1 needs it.
        seed: of the tokens that are chosen in every cell.

    Returns:
        The control, whose `step` is to be set before each call of the network.

    Raises:
        ValueError: no such block, or one that is replaced already.
    """
    blocks = [part for part in unet.modules() if hasattr(part, "norm1") and hasattr(part, "attn1")]
    if any(isinstance(block.attn1, _Replaced) for block in blocks):
        raise ValueError("AgentSD is installed in this network already: remove it first")
    blocks = [block for block in blocks if all(hasattr(block.attn1, name) for name in _PROJECTIONS)]
    if not blocks:
        raise ValueError(f"the network has no block with norm1 and an attn1 with {', '.join(_PROJECTIONS)}")
    control = AgentSDControl(schedule or AgentSDSchedule(), num_steps=num_steps, seed=seed)
    for block in blocks:
        control._replace(block, float32_scores=float32_scores)
    control._hooks.append(unet.register_forward_pre_hook(control._see, with_kwargs=True))
    return control
