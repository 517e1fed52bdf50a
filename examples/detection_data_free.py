"""PWLQ for detection without any image: torchvision's SSDlite, and an SSD on MobileNetV2.

Run it with:

    python examples/detection_data_free.py

The weights are random and the input is small: this shows the way, not an accuracy. The network
(backbone and head, two outputs) is quantized; anchors and non-maximum suppression stay as they are.
`benchmarks.field` measures a real detector.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead

from zaq_plugin.report import Audit
from zaq_plugin.strategies import Request, apply
from zaq_plugin.zero_shot.discrepancy import select
from zaq_plugin.zero_shot.images import dead_leaves

SIZE = 96
OUTPUTS = select("cls_logits", "bbox_regression")


class MobileNetV2Features(nn.Module):
    """Two feature maps of MobileNetV2, at strides 16 and 32."""

    out_channels = (96, 1280)

    def __init__(self) -> None:
        super().__init__()
        features = mobilenet_v2(weights=None).features
        self.early, self.late = features[:14], features[14:]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(n, 3, h, w) to maps ``0`` and ``1``."""
        early = self.early(x)
        return OrderedDict([("0", early), ("1", self.late(early))])


def mobilenet_v2_ssd() -> SSD:
    """An SSD with a light head on MobileNetV2."""
    backbone = MobileNetV2Features()
    anchors = DefaultBoxGenerator([[2, 3], [2, 3]], min_ratio=0.2, max_ratio=0.95)
    per_place = anchors.num_anchors_per_location()
    head = SSDLiteHead(list(backbone.out_channels), per_place, 21, nn.BatchNorm2d)
    return SSD(backbone, anchors, (SIZE, SIZE), 21, head=head)


def ssdlite() -> SSD:
    """torchvision's SSDlite on MobileNetV3."""
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21)
    model.transform.fixed_size = (SIZE, SIZE)
    return model


class Network(nn.Module):
    """What is quantized: images of one size to class scores and box values, without anchors."""

    def __init__(self, detector: SSD) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(n, 3, h, w) to (n, anchors, classes) and (n, anchors, 4)."""
        found: dict[str, Tensor] = self.head(list(self.backbone(x).values()))
        return found


def initialise(model: nn.Module) -> nn.Module:
    """Random weights that keep the size of activations, so that there is something to quantize."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model.eval()


def with_network(detector: SSD, network: nn.Module) -> SSD:
    """The whole detector, its network replaced by the quantized one."""
    changed = copy.copy(detector)
    changed._modules = dict(detector._modules)
    changed.backbone, changed.head = network.backbone, network.head
    return changed


def distance(found: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> float:
    """Relative error of one output."""
    return float((found[name] - expected[name]).norm() / expected[name].norm())


DETECTORS: dict[str, Callable[[], SSD]] = {
    "SSDlite, MobileNetV3": ssdlite,
    "SSD, MobileNetV2": mobilenet_v2_ssd,
}


@torch.no_grad()
def main() -> None:
    """Quantizes both to 4 MAC bits (5 stored) and 8-bit activations, without data and with."""
    for name, build in DETECTORS.items():
        torch.manual_seed(0)
        detector = build().eval()
        images = dead_leaves(8, (3, SIZE, SIZE), torch.Generator().manual_seed(0)) / 2
        network = initialise(Network(detector))
        request = {
            "weight_bits": 5,  # stored; PWLQ multiplies one bit narrower
            "activation_bits": 8,
            "example_inputs": (images[:2],),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "depthwise": "int8",
            "synthetic_count": 8,
            "adapter": OUTPUTS,
            "effort": 0.1,  # more for real weights
        }
        expected = network(images)
        with torch.enable_grad():  # images are distilled by gradients
            data_free = apply("pwlq", network, Request(**request))  # type: ignore[arg-type]
        real = apply("pwlq", network, Request(**request, images=images))  # type: ignore[arg-type]
        print(f"{name}: {str(Audit(data_free.layers)).splitlines()[-1]}")
        for label, applied in (("data-free", data_free), ("calibrated", real)):
            found = applied.model(images)
            errors = [f"{k} {distance(found, expected, k):.3f}" for k in expected]
            print(f"  {label}: relative errors {', '.join(errors)}")
        boxes = with_network(detector, data_free.model)([torch.rand(3, 120, 90)])[0]["boxes"]
        print(f"  the quantized detector runs, boxes of one image: {tuple(boxes.shape)}")


if __name__ == "__main__":
    main()
