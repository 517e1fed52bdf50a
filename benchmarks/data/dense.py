"""Segmentation and detection for the benchmarks: exported programs, their images, their metrics.

``camvid`` is ESPNet (Mehta et al., ECCV 2018) on street scenes, measured by mean IoU; ``coco`` is
FastestDet on 64 images, measured by AP50. Neither has an image that may calibrate.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data.graph_modules import scale_input, to_modules
from benchmarks.data.tasks import accuracy, require

CLASSES = 11
"""Of CamVid; label 11 is void, and the network has a twelfth output for it."""
CERTAIN = 0.3
"""Lowest score of a box that counts as found where two detectors are compared."""


@dataclass
class DenseTask:
    """An exported program as a module, with the images that measure it.

    Attributes:
        name: ``camvid`` or ``coco``.
        model: The program's graph with modules for its layers, in evaluation mode.
        images: (n, 3, height, width) float32, normalised as the model wants it; for measuring only.
        truth: What the metric compares with: label maps, or COCO annotations.
        mean, std: Of the input in the model's channel order, pixels from 0 to 1.
        published: The float model's figure on these files, percent.
        metric: Its name.
    """

    name: str
    model: nn.Module
    images: Tensor
    truth: Any
    mean: list[float]
    std: list[float]
    published: float
    metric: str

    def score(self, outputs: Tensor) -> float:
        """The metric in percent, of the model's outputs on all or the first images."""
        if self.name == "camvid":
            return mean_iou(outputs.argmax(1), self.truth[: len(outputs)])
        return average_precision(detections(outputs), self.truth, len(outputs))

    def agreement(self, expected: Tensor, actual: Tensor) -> float:
        """How much of what two models answer is the same, percent: pixels' classes, or boxes."""
        if self.name == "camvid":
            return accuracy(actual, expected.argmax(1))
        return same_boxes(detections(expected, CERTAIN), detections(actual, CERTAIN))


def blue_first(pixels: np.ndarray) -> Tensor:
    """(n, h, w, 3) uint8 RGB to (n, 3, h, w) float32 BGR, 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(pixels[..., ::-1])).permute(0, 3, 1, 2).float()


def load_camvid(data: Path) -> DenseTask:
    """ESPNet on 40 images of CamVid, 360 x 480; mIoU 56.0 % in float.

    The network wants its normalised input divided by 255; the division becomes part of the model,
    so that images have a deviation of about one, as distillation expects.
    """
    folder = data / "camvid"
    program = torch.export.load(require(folder / "espnet.pt2"))
    archive = np.load(require(folder / "test.npz"))
    mean, std = torch.tensor([110.331, 108.409, 105.033]), torch.tensor([72.126, 72.691, 69.904])
    images = (blue_first(archive["images"]) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    return DenseTask(
        "camvid",
        scale_input(to_modules(program.module()), 1 / 255),
        images,
        torch.from_numpy(archive["labels"].astype(np.int64)),
        (mean / 255).tolist(),
        (std / 255).tolist(),
        56.0,
        "mIoU",
    )


def load_coco(data: Path) -> DenseTask:
    """FastestDet on 64 images of COCO, 352 x 352; AP50 39.5 % in float."""
    folder = data / "coco"
    program = torch.export.load(require(folder / "fastestdet.pt2"))
    archive = np.load(require(folder / "images.npz"))
    return DenseTask(
        "coco",
        to_modules(program.module()),
        blue_first(archive["images"]) / 255,
        archive["boxes"],
        [0.0] * 3,
        [1.0] * 3,
        39.5,
        "AP50",
    )


def mean_iou(predicted: Tensor, labels: Tensor, classes: int = CLASSES) -> float:
    """Mean intersection over union of the classes, percent.

    Pixels whose label is not one of the classes count nowhere; a prediction outside the classes on
    another pixel is a miss. Classes that neither stand in the labels nor are predicted are left
    out of the mean.

    Args:
        predicted: (n, h, w) class of each pixel.
        labels: (n, h, w).
        classes: How many there are.
    """
    labelled = labels < classes
    wide = classes + 1  # the last column: predicted as something else
    pairs = labels[labelled] * wide + predicted[labelled].clamp(max=classes)
    confusion = torch.bincount(pairs, minlength=classes * wide).reshape(classes, wide).double()
    hits = confusion.diagonal()
    union = confusion.sum(1) + confusion[:, :classes].sum(0) - hits
    present = union > 0
    return 100 * float((hits[present] / union[present]).mean())


@dataclass
class Boxes:
    """What the detector found in one image: (k, 4) corners from 0 to 1, (k,) scores, classes."""

    corners: Tensor
    scores: Tensor
    classes: Tensor


def detections(outputs: Tensor, threshold: float = 0.01, overlap: float = 0.45) -> list[Boxes]:
    """FastestDet's outputs as boxes, non-maximum suppression within each class.

    Args:
        outputs: (n, 5 + classes, rows, columns): objectness, four box values, class scores.
        threshold: Lowest score, objectness^0.6 times class score^0.4.
        overlap: Boxes of one class with a larger IoU than this are one.
    """
    from torchvision.ops import batched_nms

    rows, columns = outputs.shape[2:]
    best, classes = outputs[:, 5:].max(1)
    scores = outputs[:, 0].pow(0.6) * best.pow(0.4)
    x = (outputs[:, 1].tanh() + torch.arange(columns)) / columns
    y = (outputs[:, 2].tanh() + torch.arange(rows).view(-1, 1)) / rows
    width, height = outputs[:, 3].sigmoid(), outputs[:, 4].sigmoid()
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
    boxes = []
    for index in range(len(outputs)):
        chosen = scores[index] > threshold
        part = Boxes(corners[index][chosen], scores[index][chosen], classes[index][chosen])
        indices = batched_nms(part.corners, part.scores, part.classes, overlap)
        boxes.append(Boxes(part.corners[indices], part.scores[indices], part.classes[indices]))
    return boxes


def same_boxes(expected: list[Boxes], actual: list[Boxes], overlap: float = 0.5) -> float:
    """Share of boxes that have a partner in the other list, percent: the F1 score.

    Partners are of one image and one class and overlap by at least ``overlap`` (IoU); pairs with
    the largest overlap are joined first, and each box has one partner.

    Args:
        expected: One entry an image.
        actual: The same images.
        overlap: Of partners.
    """
    from torchvision.ops import box_iou

    pairs = 0
    for one, other in zip(expected, actual, strict=True):
        alike = one.classes[:, None] == other.classes[None]
        shared = box_iou(one.corners, other.corners) * alike
        while shared.numel() and float(shared.max()) >= overlap:
            row, column = divmod(int(shared.argmax()), shared.shape[1])
            shared[row], shared[:, column] = 0, 0
            pairs += 1
    boxes = sum(len(part.scores) for part in (*expected, *actual))
    return 100 * 2 * pairs / boxes if boxes else 100.0


def average_precision(predicted: list[Boxes], truth: np.ndarray, images: int) -> float:
    """AP at IoU 0.5 in percent, by pycocotools: 101 points, crowds ignored, mean over classes.

    Args:
        predicted: One entry an image.
        truth: (k, 7): image, class, corners from 0 to 1, whether it is a crowd.
        images: Only the first so many are counted.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    side = 352.0  # a unit, so that areas are areas; IoU does not depend on it
    annotations: list[dict[str, Any]] = []
    for image, kind, x1, y1, x2, y2, crowd in truth.tolist():
        if image < images:
            box = [side * x1, side * y1, side * (x2 - x1), side * (y2 - y1)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": int(image),
                    "category_id": int(kind),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(crowd),
                }
            )
    results = []
    for image, boxes in enumerate(predicted):
        for corner, score, kind in zip(
            boxes.corners.tolist(), boxes.scores.tolist(), boxes.classes.tolist(), strict=True
        ):
            x1, y1, x2, y2 = (side * v for v in corner)
            results.append(
                {
                    "image_id": image,
                    "category_id": kind,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
            )
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it prints every step
        expected = COCO()
        expected.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(images)],
            "annotations": annotations,
            "categories": [{"id": k} for k in sorted({a["category_id"] for a in annotations})],
        }
        expected.createIndex()
        classes = {a["category_id"] for a in annotations}
        actual = expected.loadRes(
            [r for r in results if r["category_id"] in classes] or results[:1]
        )
        evaluation = COCOeval(expected, actual, "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]  # recall points, classes
    counted = [column.mean() for column in precision.T if column[0] > -1]
    return 100 * float(np.mean(counted)) if counted else 0.0


LOADERS = {"camvid": load_camvid, "coco": load_coco}
