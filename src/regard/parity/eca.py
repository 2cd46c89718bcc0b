"""Parity with BangguWu/ECANet: the layer, its unshared form, and the residual blocks that hold it."""

from __future__ import annotations

from regard.layers.residual_blocks import BasicBlock, Bottleneck
from regard.mixers.channel.eca import ECA
from regard.mixers.channel.eca_ns import ECANS
from regard.parity.adapters import Case, Leaf, Outcome, Reshaped, adapter


def _gate(case: Case, layer: ECA | ECANS) -> Outcome:
    layer.load_reference(case.state)
    layer.train(case.mode == "train")
    x = case.inputs["x"]
    filters = 1 if isinstance(layer, ECA) else layer.channels
    taps = Reshaped(layer.taps, (filters, 1, layer.kernel_size))
    return Outcome(outputs={"y": layer(x)}, leaves={"in.x": x, "conv.weight": taps})


@adapter("models/eca_module.py:eca_layer")
def eca_layer(case: Case) -> Outcome:
    """One stencil for all channels."""
    return _gate(case, ECA(case.config["channel"], kernel_size=case.config["k_size"]))


@adapter("models/eca_ns.py:eca_layer")
def eca_ns_layer(case: Case) -> Outcome:
    """A stencil for each channel."""
    return _gate(case, ECANS(case.config["channel"], kernel_size=case.config["k_size"]))


def _block(case: Case, block: type[BasicBlock] | type[Bottleneck]) -> Outcome:
    config = case.config
    channels = config["planes"] * block.expansion
    mixer = ECA(channels, kernel_size=config["k_size"])
    layer = block(config["inplanes"], config["planes"], stride=config["stride"], mixer=mixer)
    layer.load_reference(case.state)
    layer.train(case.mode == "train")
    x = case.inputs["x"]
    outputs = {"y": layer(x)}
    # what training changed, under the names of the file
    outputs |= {
        name: dict(layer.named_buffers())[name.removeprefix("after.")]
        for name in case.expected
        if name.startswith("after.")
    }
    leaves: dict[str, Leaf] = dict(layer.named_parameters())
    taps = Reshaped(leaves.pop("mixer.taps"), (1, 1, mixer.kernel_size))
    return Outcome(outputs=outputs, leaves={"in.x": x, "eca.conv.weight": taps, **leaves})


@adapter("models/eca_resnet.py:ECABasicBlock")
def basic_block(case: Case) -> Outcome:
    """Two 3x3 convolutions, the gate after the second batch norm."""
    return _block(case, BasicBlock)


@adapter("models/eca_resnet.py:ECABottleneck")
def bottleneck(case: Case) -> Outcome:
    """The gate after the third batch norm, on four times the inner width."""
    return _block(case, Bottleneck)
