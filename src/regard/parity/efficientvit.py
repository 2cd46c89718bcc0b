"""Parity with microsoft/Cream's EfficientViT: cascaded group attention, its windows, and a whole network."""

from __future__ import annotations

from regard.mixers.spatial.cascaded_group import CASCADED_GROUP_NAMES, CascadedGroupAttention
from regard.models.vision.efficientvit import EfficientViT, EfficientViTConfig, reference_names
from regard.parity.adapters import Case, Outcome, adapter
from regard.parity.shvit import leaves

_FILE = "EfficientViT/classification/model/efficientvit.py"


def _attention(case: Case, window_size: int) -> Outcome:
    config = case.config
    layer = CascadedGroupAttention(
        config["dim"],
        num_heads=config["num_heads"],
        window_size=window_size,
        head_dim=config["key_dim"],
        kernel_sizes=tuple(config["kernels"]),
    ).eval()
    layer.load_reference(case.state)
    x = case.inputs["x"]
    return Outcome(outputs={"y": layer(x)}, leaves={"in.x": x, **leaves(case, layer, CASCADED_GROUP_NAMES)})


@adapter(f"{_FILE}:CascadedGroupAttention")
def cascaded_group_attention(case: Case) -> Outcome:
    """On a map that is one window."""
    return _attention(case, case.config["resolution"])


@adapter(f"{_FILE}:LocalWindowAttention")
def local_window_attention(case: Case) -> Outcome:
    """On a map that the windows do not fill."""
    return _attention(case, min(case.config["window_resolution"], case.config["resolution"]))


@adapter(f"{_FILE}:EfficientViT")
def efficientvit(case: Case) -> Outcome:
    """The whole classifier."""
    config = case.config
    (head_dim,), (window_size,) = set(config["key_dim"]), set(config["window_size"])
    model = EfficientViT(
        EfficientViTConfig(
            in_channels=case.inputs["x"].shape[1],
            num_classes=config["num_classes"],
            image_size=config["img_size"],
            dims=tuple(config["embed_dim"]),
            depths=tuple(config["depth"]),
            num_heads=tuple(config["num_heads"]),
            kernel_sizes=tuple(config["kernels"]),
            window_size=window_size,
            head_dim=head_dim,
            patch_size=config["patch_size"],
        )
    ).eval()
    model.load_reference(case.state)
    x = case.inputs["x"]
    rules = reference_names(model.config)
    return Outcome(outputs={"y": model(x)}, leaves={"in.x": x, **leaves(case, model, rules)})
