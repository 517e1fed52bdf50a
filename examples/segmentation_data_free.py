"""PWLQ for segmentation without any image: DeepLabV3 on MobileNetV2, from torchvision's parts.

Run it with:

    python examples/segmentation_data_free.py

The weights are random and the input is small: this shows the way, not an accuracy. With weights of
your own the steps are the same. `benchmarks.field` measures a real segmenter.
"""

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3

from zaq_plugin import ZeroShotConfig, zero_shot_finetune
from zaq_plugin.report import Audit
from zaq_plugin.strategies import Request, apply
from zaq_plugin.zero_shot.discrepancy import select
from zaq_plugin.zero_shot.images import dead_leaves

IMAGE_SHAPE = (3, 64, 64)
SEGMENTATION = select("out")  # of the dictionary that the model returns


class Features(nn.Sequential):
    """MobileNetV2's convolutions as DeepLab wants its backbone: a dictionary of feature maps."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(n, 3, h, w) to {"out": (n, 1280, h / 32, w / 32)}."""
        return {"out": super().forward(x)}


def segmenter(classes: int = 21) -> nn.Module:
    """DeepLabV3 with a MobileNetV2 backbone, random weights."""
    backbone = Features(*mobilenet_v2(weights=None).features)
    return DeepLabV3(backbone, DeepLabHead(1280, classes))


def initialise(model: nn.Module) -> nn.Module:
    """Random weights that keep the size of activations, so that there is something to quantize."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model.eval()


@torch.no_grad()
def told(student: nn.Module, model: nn.Module, images: Tensor) -> str:
    """How far the student is from the model: relative error of the scores, pixels that agree."""
    found, expected = student(images)["out"], model(images)["out"]
    error = float((found - expected).norm() / expected.norm())
    same = 100 * float((found.argmax(1) == expected.argmax(1)).double().mean())
    return f"relative error {error:.3f}, {same:.2f} % of the pixels agree"


def main() -> None:
    """Quantizes to 4 MAC bits (5 stored) and 8-bit activations, without data and with."""
    torch.manual_seed(0)
    images = dead_leaves(8, IMAGE_SHAPE, torch.Generator().manual_seed(0)) / 2
    model = initialise(segmenter())
    request = {
        "weight_bits": 5,  # stored; PWLQ multiplies one bit narrower
        "activation_bits": 8,
        "example_inputs": (images[:2],),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "depthwise": "int8",  # nine weights a channel: a codebook would cost more than it saves
        "synthetic_count": 8,
        "adapter": SEGMENTATION,
        "effort": 0.1,  # more for real weights
    }
    data_free = apply("pwlq", model, Request(**request))  # type: ignore[arg-type]
    print(Audit(data_free.layers))
    print(f"data-free: {told(data_free.model, model, images)}")
    real = apply("pwlq", model, Request(**request, images=images))  # type: ignore[arg-type]
    print(f"calibrated: {told(real.model, model, images)}")

    config = ZeroShotConfig.preset(
        "fast", steps=2, reconstruct=False, batch_size=4, distilled_images=8, validation_images=4
    )
    zero_shot_finetune(
        data_free.model,
        config,
        image_shape=IMAGE_SHAPE,
        float_model=model,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        adapter=SEGMENTATION,
        progress=False,
    )
    print(f"fine-tuned: {told(data_free.model, model, images)}")


if __name__ == "__main__":
    main()
