"""Networks by name, with weights from a file, a run's folder, or the Hugging Face hub."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from regard.errors import UserError
from regard.registry import create, entry_of, get_class
from regard.tasks.networks import build
from regard.tasks.pretrained import read_pretrained
from regard.wording import shown

HUB = "hf-hub:"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def create_model(name: str, *, pretrained: str | Path | None = None, **options: Any) -> nn.Module:
    """Build a network, with weights where they are wanted.

    A checkpoint of `regard train` brings its sizes along. With another `num_classes` than the weights have, the
    classifier starts afresh.

    Args:
        name: a network's public name, or a variant's (`"davit_tiny"`).
        pretrained: a checkpoint or a run's folder of ours; a file in the authors' layout or in timm's, as safetensors
            or a pickle of tensors alone; or `"hf-hub:owner/name"`. None = fresh weights.
        options: fields of the network's config, such as `num_classes`.

    Raises:
        UnknownSystemError: no such name; the message suggests the nearest.
        TypeError: an option that the config does not have; the message suggests the nearest.
        ValueError: a name that is no network's, or an option that it refuses.
        UserError: weights that cannot be found, read safely, or made to fit.

    Example:
        >>> model = create_model("davit_tiny", num_classes=10)
    """
    if entry_of(name).kind != "model":
        raise ValueError(f"{name} is no network: `regard.create` builds mechanisms")
    if pretrained is None:
        return create(name, **options)
    found = read_pretrained(_local_file(pretrained))
    config = found.config_for(entry_of(name).name)
    if config is None:
        cls: Any = get_class(name)
        variants = cls.VARIANTS
        config = variants[name].config if name in variants else next(iter(variants.values())).config
    known = [item.name for item in fields(config)]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise TypeError(f"{name} has no option {unknown[0]!r}: it takes {', '.join(known)}")
    config = replace(config, **options)
    model = build(name, config)
    model.load_state_dict(found.weights_for(name, config), strict=False)
    return model


def _local_file(pretrained: str | Path) -> Path:
    text = str(pretrained)
    return _from_hub(text.removeprefix(HUB)) if text.startswith(HUB) else Path(pretrained)


def _from_hub(repository: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
    except ImportError:
        raise UserError("weights from the hub need huggingface-hub: pip install 'regard[hf]'") from None
    for file in HUB_FILES:
        try:
            return Path(hf_hub_download(repository, file))
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            told = shown(str(error).partition("\n")[0], 160)
            raise UserError(f"cannot get {shown(repository)} from the hub: {told}") from None
    raise UserError(f"{shown(repository)} on the hub has neither {' nor '.join(HUB_FILES)}")
