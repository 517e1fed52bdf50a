"""Detection and segmentation networks of torchvision, with random weights, for the coverage."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DetectionHeads(nn.Module):
    """SSDlite on MobileNetV3: boxes and classes of all anchors, without the selection of boxes."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.detection import ssdlite320_mobilenet_v3_large

        self.network = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, 3, 320, 320)."""
        heads = self.network.head(list(self.network.backbone(x).values()))
        return heads["bbox_regression"], heads["cls_logits"]


class Segmentation(nn.Module):
    """DeepLabV3 on MobileNetV3: scores of twelve classes for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

        self.network = deeplabv3_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=12
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, height, width)."""
        scores: Tensor = self.network(x)["out"]
        return scores


HEADS: dict[str, tuple[type[nn.Module], int]] = {
    "ssdlite320_mobilenet_v3_large": (DetectionHeads, 320),
    "deeplabv3_mobilenet_v3_large": (Segmentation, 128),
}
"""By torchvision's names: what makes it, and the size of its images."""


def make_head(name: str, count: int) -> tuple[nn.Module, Tensor]:
    """A network and images for it."""
    kind, size = HEADS[name]
    torch.manual_seed(0)
    return kind().eval().requires_grad_(False), torch.randn(count, 3, size, size)
