"""The networks of the coverage, with random weights: timm's families, heads of torchvision."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from zaq_timm.zoo.errors import LeftOut

SIZES = (64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512, 768, 1024)
IMAGES = 8


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


def smallest_models() -> dict[str, str]:
    """Every module that timm registers, to its model of fewest parameters, test models left out."""
    import timm
    from timm.models import list_modules

    smallest = {}
    warnings.simplefilter("ignore")
    for module in sorted(list_modules()):
        sizes = {}
        for name in timm.list_models(module=module):
            if name.startswith("test_"):
                continue
            with torch.device("meta"):
                try:
                    model = timm.create_model(name)
                except RuntimeError:
                    continue  # a name that timm itself cannot make
            sizes[name] = sum(p.numel() for p in model.parameters())
        if sizes:
            smallest[module] = min(sizes, key=lambda n: (sizes[n], n))
    return smallest


def parameters(name: str) -> int:
    """Of a model."""
    import timm

    with torch.device("meta"):
        model = HEADS[name][0]() if name in HEADS else timm.create_model(name)
    return sum(p.numel() for p in model.parameters())


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A model and images of the smallest size that it takes, (IMAGES, C, H, W).

    Raises:
        LeftOut: it takes no images of its own size either.
    """
    if name in HEADS:
        head, inputs = make_head(name, IMAGES)
        _perturb(head)
        return head, inputs
    import timm

    torch.manual_seed(0)
    cfg = timm.get_pretrained_cfg(name)
    config = timm.create_model(name).pretrained_cfg if cfg is None else cfg.to_dict()
    channels, height, _ = config.get("input_size", (3, 224, 224))
    sizes = [s for s in SIZES if s < height] + [height]
    last = ""
    for size in sizes:
        try:
            options = {"img_size": size} if config.get("fixed_input_size") else {}
            torch.manual_seed(0)
            model = timm.create_model(name, **options).eval().requires_grad_(False)
            images = torch.randn(IMAGES, channels, size, size)
            with torch.no_grad():
                model(images[:2])
        except Exception as error:  # too small, in each model's own words
            last = " ".join(str(error).split())[:200]
            continue
        _perturb(model)
        return model, images
    raise LeftOut(f"the float model takes no images of {sizes[-1]} pixels ({last})")


def _perturb(model: nn.Module) -> None:
    """Statistics and gammas away from 0 and 1, where folding would have nothing to do."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
