"""Metrics of segmentation and detection against direct computations."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.data.dense import Boxes, average_precision, detections, mean_iou, same_boxes
from benchmarks.data.graph_modules import scale_input, to_modules


def test_mean_iou_is_intersection_over_union_of_each_class() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (2, 6, 7), generator=generator)  # 3 and 4 are no classes
    predicted = torch.randint(0, 4, (2, 6, 7), generator=generator)
    expected = []
    for kind in range(3):
        both = either = 0
        for truth, guess in zip(
            labels.flatten().tolist(), predicted.flatten().tolist(), strict=True
        ):
            if truth < 3:
                both += int(truth == kind and guess == kind)
                either += int(truth == kind or guess == kind)
        expected.append(both / either)
    assert mean_iou(predicted, labels, 3) == pytest.approx(100 * sum(expected) / 3)


def test_an_absent_class_does_not_count() -> None:
    labels = torch.tensor([[[0, 0, 1, 1]]])
    assert mean_iou(labels, labels, 11) == 100
    assert mean_iou(torch.full_like(labels, 11), labels, 11) == 0


def test_detections_are_decoded_as_the_network_means_them() -> None:
    outputs = torch.zeros(1, 8, 2, 3)  # 3 classes, 2 rows, 3 columns
    outputs[0, :, 1, 2] = torch.tensor([0.9, 0.3, -0.4, 0.1, -0.2, 0.1, 0.8, 0.1])
    (boxes,) = detections(outputs)
    x, y = (math.tanh(0.3) + 2) / 3, (math.tanh(-0.4) + 1) / 2
    width, height = 1 / (1 + math.exp(-0.1)), 1 / (1 + math.exp(0.2))
    expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    assert boxes.corners[0].tolist() == pytest.approx(expected)
    assert boxes.scores.tolist() == pytest.approx([0.9**0.6 * 0.8**0.4])
    assert boxes.classes.tolist() == [1]


def test_of_two_boxes_on_one_thing_the_surer_stays_unless_classes_differ() -> None:
    outputs = torch.zeros(1, 7, 1, 2)
    outputs[0, 0] = torch.tensor([0.9, 0.8])
    outputs[0, 1, 0] = torch.tensor([2.0, 0.0])  # both centres near the middle
    outputs[0, 3:5] = 3.0
    outputs[0, 5] = 1.0
    (same,) = detections(outputs)
    assert same.scores.tolist() == pytest.approx([0.9**0.6])
    outputs[0, 5:, 0, 1] = torch.tensor([0.0, 1.0])
    (other,) = detections(outputs)
    assert sorted(other.classes.tolist()) == [0, 1]


def precision_by_hand(predicted: list[Boxes], truth: np.ndarray) -> float:
    """AP50 of one class without crowds: sort, match greedily, 101 points."""
    scored = [
        (float(score), image, corner.tolist())
        for image, boxes in enumerate(predicted)
        for corner, score in zip(boxes.corners, boxes.scores, strict=True)
    ]
    taken: set[int] = set()
    hits = []
    for _, image, box in sorted(scored, key=lambda s: -s[0]):
        best, which = 0.5, -1
        for index, row in enumerate(truth):
            if int(row[0]) == image and index not in taken:
                wide = min(box[2], row[4]) - max(box[0], row[2])
                high = min(box[3], row[5]) - max(box[1], row[3])
                inter = max(wide, 0) * max(high, 0)
                area = (box[2] - box[0]) * (box[3] - box[1])
                area += (row[4] - row[2]) * (row[5] - row[3])
                overlap = inter / (area - inter)
                if overlap >= best:
                    best, which = overlap, index
        taken |= {which} - {-1}
        hits.append(which >= 0)
    recall = np.cumsum(hits) / len(truth)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    points = [precision[recall >= p].max(initial=0.0) for p in np.linspace(0, 1, 101)]
    return 100 * float(np.mean(points))


def boxes_near(truth: np.ndarray, images: int, generator: torch.Generator) -> list[Boxes]:
    """Every true box moved a little, and as many wrong ones."""
    near = []
    for image in range(images):
        rows = torch.from_numpy(truth[truth[:, 0] == image][:, 2:6])
        moved = rows + 0.05 * torch.randn(rows.shape, generator=generator)
        wrong = torch.rand(len(rows), 2, generator=generator) / 2
        corners = torch.cat([moved, torch.cat([wrong, wrong + 0.2], 1)])
        scores = torch.rand(len(corners), generator=generator)
        near.append(Boxes(corners, scores, torch.zeros(len(corners), dtype=torch.long)))
    return near


def true_boxes(rng: np.random.Generator) -> np.ndarray:
    corner = rng.uniform(0, 0.5, (12, 2))
    size = rng.uniform(0.2, 0.5, (12, 2))
    image = np.repeat(np.arange(4), 3)[:, None]
    return np.concatenate([image, np.zeros((12, 1)), corner, corner + size, np.zeros((12, 1))], 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_average_precision_is_that_of_a_direct_computation(seed: int) -> None:
    truth = true_boxes(np.random.default_rng(seed)).astype(np.float32)
    predicted = boxes_near(truth, 4, torch.Generator().manual_seed(seed))
    expected = precision_by_hand(predicted, truth)
    assert 5 < expected < 95
    assert average_precision(predicted, truth, 4) == pytest.approx(expected, abs=1e-6)


def test_crowds_and_later_images_do_not_count() -> None:
    truth = true_boxes(np.random.default_rng(0)).astype(np.float32)
    truth[-1, 6] = 1
    exact = [
        Boxes(
            torch.from_numpy(truth[truth[:, 0] == i][:, 2:6]),
            torch.ones(3),
            torch.zeros(3, dtype=torch.long),
        )
        for i in range(4)
    ]
    assert average_precision(exact, truth, 4) == pytest.approx(100)
    assert average_precision(exact[:2], truth, 2) == pytest.approx(100)
    nothing = Boxes(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert average_precision([nothing] * 4, truth, 4) == 0


def boxes_of(*rows: tuple[float, float, float, float, int]) -> Boxes:
    values = torch.tensor(rows).reshape(-1, 5)
    return Boxes(values[:, :4], torch.ones(len(rows)), values[:, 4].long())


def test_boxes_of_two_detectors_are_paired_within_image_and_class() -> None:
    expected = [
        boxes_of((0, 0, 4, 4, 0), (10, 0, 14, 4, 0), (20, 0, 24, 4, 1), (30, 0, 34, 4, 2)),
        boxes_of((0, 0, 4, 4, 0)),
    ]
    actual = [
        # IoU 12 / 20 and, with the same box, 14 / 18: one partner. 8 / 24: none. Another class.
        boxes_of((1, 0, 5, 4, 0), (0.5, 0, 4.5, 4, 0), (12, 0, 16, 4, 0), (20, 0, 24, 4, 2)),
        boxes_of(),
    ]
    assert same_boxes(expected, actual) == pytest.approx(100 * 2 * 1 / 9)
    actual[1] = boxes_of((0, 0, 4, 4, 0))
    assert same_boxes(expected, actual) == pytest.approx(100 * 2 * 2 / 10)
    assert same_boxes(actual, expected) == same_boxes(expected, actual)
    assert same_boxes(expected, expected) == 100


def test_the_pair_that_overlaps_most_comes_first() -> None:
    """Its rival then takes what is left, at IoU 2.4 / 5.6: below a half, no partner."""
    expected = [boxes_of((0, 0, 4, 1, 0), (0.6, 0, 4.6, 1, 0))]
    actual = [boxes_of((0.6, 0, 4.6, 1, 0), (1.6, 0, 5.6, 1, 0))]
    # 0.6 to 4.6 twice is IoU 1; 0 to 4 and 1.6 to 5.6 remain. The other way round both would pair.
    assert same_boxes(expected, actual) == 50


def test_two_detectors_that_find_nothing_agree() -> None:
    assert same_boxes([boxes_of()], [boxes_of()]) == 100
    assert same_boxes([boxes_of((0, 0, 1, 1, 0))], [boxes_of()]) == 0


class Small(nn.Module):
    """The operators of the two programs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.act, self.up = nn.PReLU(4), nn.ConvTranspose2d(4, 4, 2, 2, bias=False)
        self.pool, self.wide = nn.MaxPool2d(3, 2, 1), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        a, b = x[:, :2], x[:, 2:]
        x = torch.cat([b.relu(), nn.functional.avg_pool2d(a, 3, 1, 1)], 1) + x
        x = self.wide(self.pool(self.up(x)))
        return torch.cat([x[:, :1].sigmoid(), x[:, 1:].softmax(1)], 1)


def test_an_exported_graph_becomes_modules_with_the_same_function() -> None:
    torch.manual_seed(0)
    model = Small().eval()
    model.norm.running_var.uniform_(0.5, 2)
    images = torch.randn(3, 3, 16, 16)
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(model, (images[:2],), dynamic_shapes=shapes)
    modules = to_modules(program.module())
    with torch.no_grad():
        torch.testing.assert_close(modules(images), model(images))
        torch.testing.assert_close(scale_input(modules, 0.5)(2 * images), model(images))
    kinds = {type(m) for m in modules.modules()}
    assert {nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.PReLU, nn.ReLU} <= kinds
    assert isinstance(torch.fx.symbolic_trace(modules), torch.fx.GraphModule)


class Classifier(nn.Module):
    """The operators of MobileNetV1: padding on two sides only, ReLU6, pooling, a classifier."""

    def __init__(self, mode: str = "constant") -> None:
        super().__init__()
        self.mode, self.layer, self.head = mode, nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, (0, 1, 0, 1), mode=self.mode)
        x = nn.functional.hardtanh(nn.functional.relu6(4 * self.layer(x)), 1.0, 3.0)
        x = nn.functional.pad(x, (2, 0), value=0.5)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_padding_and_clipping_become_modules_with_the_same_function() -> None:
    torch.manual_seed(0)
    model, images = Classifier().eval(), torch.randn(3, 3, 16, 16)
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    modules = to_modules(torch.export.export(model, (images[:2],), dynamic_shapes=shapes).module())
    with torch.no_grad():
        torch.testing.assert_close(modules(images), model(images))
    kinds = {type(m) for m in modules.modules()}
    assert {nn.ConstantPad2d, nn.ReLU6, nn.Hardtanh, nn.AdaptiveAvgPool2d} <= kinds


def test_padding_that_no_module_stands_for_is_refused() -> None:
    program = torch.export.export(Classifier("reflect").eval(), (torch.randn(2, 3, 16, 16),))
    with pytest.raises(ValueError, match=r"got mode 'reflect' and widths \(0, 1, 0, 1\)"):
        to_modules(program.module())


def test_an_unknown_operator_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.erf(self.layer(x))

    program = torch.export.export(Odd().eval(), (torch.randn(2, 4),))
    with pytest.raises(ValueError, match="operator 'erf' has no module here"):
        to_modules(program.module())
