"""Ranges of outputs: made images answer less surely than real ones, whose logits must not tie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Net, perturb
from torch import Tensor, nn

from zaq_plugin.ptq import calibrate, fold_batch_norm
from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.strategies import Request, apply
from zaq_plugin.student.fake_quantizers import output_quantizers
from zaq_plugin.student.host import Assignment, find_host


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return perturb(Net(10)), torch.randn(32, 3, 17, 17)


@pytest.mark.parametrize("method", ["pwlq", "dfq"])
@pytest.mark.parametrize(("data", "margin"), [("images", 1.0), ("synthetic", 2.0)])
def test_made_images_leave_room_for_the_logits_of_real_ones(
    data: str, margin: float, method: str
) -> None:
    model, images = network()
    options: dict[str, Any] = {data: images}
    request = Request(4, 8, example_inputs=(images[:2],), host="fx", **options)
    student = apply(method, model, request).model
    with torch.no_grad():
        logits = model(images)
    (quantizer,) = output_quantizers(student)
    scale, zero_point = quantizer.calculate_qparams()
    low, high = scale * (0 - zero_point), scale * (255 - zero_point)
    assert low.item() == pytest.approx(margin * logits.min().item(), abs=float(scale))
    assert high.item() == pytest.approx(margin * logits.max().item(), abs=float(scale))
    with torch.no_grad():
        converted = find_host("fx").convert(student)(3 * images)
    assert converted.max().item() <= high.item() + 1e-4, "the kernel's grid is the student's"


def test_a_calibration_with_room_is_forgotten_by_the_next_one() -> None:
    model, images = network()
    prepared = [
        find_host("fx").prepare(model, (images[:2],), Assignment(PWLQSpec(bits=4), 8)).model
        for _ in range(2)
    ]
    calibrate(prepared[0], [images], output_margin=3.0)
    for student in prepared:
        calibrate(student, [images])
    (first,), (second,) = map(output_quantizers, prepared)
    assert torch.equal(first.scale, second.scale)
    assert torch.equal(first.zero_point, second.zero_point)


def test_hosts_that_leave_outputs_float_have_nothing_to_widen() -> None:
    model, images = network()
    for host in ("simulated", "pt2e"):
        request = Request(4, 8, example_inputs=(images[:2],), synthetic=images, host=host)
        assert output_quantizers(apply("pwlq", model, request).model) == []
    assert output_quantizers(fold_batch_norm(model)) == []


def test_ranges_that_training_sets_anew_leave_the_room_too() -> None:
    model, images = network()
    request = Request(
        4, 8, example_inputs=(images[:2],), host="fx", synthetic=images, effort=0.01, batch_size=16
    )
    (quantizer,) = output_quantizers(apply("zaq", model, request).model)
    observer = quantizer.activation_post_process
    with torch.no_grad():
        logits = model(images)
    assert 0 < observer.max_val.item() <= logits.max().item() + 1e-4
    scale, zero_point = observer.calculate_qparams()
    top = float(scale) * (255 - int(zero_point))
    assert top == pytest.approx(2 * observer.max_val.item(), abs=float(scale))
    assert torch.equal(quantizer.zero_point, zero_point)
