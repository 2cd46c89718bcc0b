"""Use: an image network as the backbone of a detector, a ViT around another mixer, and fine-tuning a new head.

Run: python examples/backbone.py
"""

from __future__ import annotations

import timm
import torch
from torch import nn

from regard.integrations.timm import register


class FeaturePyramid(nn.Module):
    """Maps of one width at every stride of a timm backbone, each with what the coarser ones saw."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in backbone.feature_info.channels())

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.lateral, self.backbone(images), strict=True)]
        for fine, coarse in zip(range(len(maps) - 2, -1, -1), range(len(maps) - 1, 0, -1), strict=True):
            maps[fine] = maps[fine] + nn.functional.interpolate(maps[coarse], size=maps[fine].shape[2:])
        return maps


def pyramid() -> None:
    backbone = timm.create_model("regard_davit_tiny", features_only=True)
    images = torch.randn(1, 3, 240, 320)
    with torch.no_grad():
        for stride, x in zip(backbone.feature_info.reduction(), FeaturePyramid(backbone, 64)(images), strict=True):
            print(f"stride {stride:2d}: map of {tuple(x.shape[1:])}")


def other_attention() -> None:
    model = timm.create_model("vit_tiny_patch16_224", attn_layer="regard_agent", num_classes=10)
    with torch.no_grad():
        print(f"a ViT with agent attention: scores of shape {tuple(model(torch.randn(2, 3, 224, 224)).shape)}")


def fine_tune() -> None:
    """Only the new head learns; with your own images, `regard train davit_tiny --data FOLDER` does all of this."""
    model = timm.create_model("regard_davit_tiny", num_classes=2)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.reset_classifier(2)
    images, labels = torch.randn(8, 3, 64, 64), torch.tensor([0, 1] * 4)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    optimizer = torch.optim.AdamW(model.get_classifier().parameters(), lr=0.05)
    for _ in range(30):
        loss = nn.functional.cross_entropy(model.get_classifier()(pooled), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"eight random images learned by the head alone: loss {loss.item():.3f}")


def main() -> None:
    torch.manual_seed(0)
    names = register()
    print(f"{len(names)} networks are timm models now, such as {names[0]}")
    pyramid()
    other_attention()
    fine_tune()


if __name__ == "__main__":
    main()
