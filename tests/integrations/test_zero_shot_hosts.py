"""Zero-shot fine-tuning of students that the hosts prepared: every host, one proof.

The stock preparation gives the student; taps and blocks are found in it, it is fine-tuned without
data, gets no worse, and what the host converts computes what the student computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from networks import Net
from torch import nn

from zaq_plugin.pwlq import PWLQSpec
from zaq_plugin.reconstruction.blocks import find_blocks
from zaq_plugin.student import twin
from zaq_plugin.zero_shot import ZeroShotConfig, ZeroShotLoader, zero_shot_finetune
from zaq_plugin.zero_shot.taps import find_taps

SHAPE = (3, 12, 12)
CONFIG = ZeroShotConfig(
    steps=6,
    batch_size=8,
    distilled_images=32,
    validation_images=32,
    distill_steps=8,
    calibration_images=32,
    reconstruct_iterations=15,
    reconstruct_batch_size=8,
    validate_every=3,
)


class Host(NamedTuple):
    """A student and how its host converts it."""

    student: nn.Module
    convert: Callable[[nn.Module], nn.Module]
    correct: Callable[..., object] | None


def float_model() -> nn.Module:
    torch.manual_seed(0)
    model = Net(5, depthwise=False)
    model.train()
    for _ in range(10):
        model(torch.randn(32, *SHAPE))
    return model.eval()


def fx(model: nn.Module, spec: PWLQSpec) -> Host:
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

    import zaq_fx

    backend = zaq_fx.pwlq_backend_config()
    mapping = zaq_fx.pwlq_qat_qconfig_mapping(spec)
    example = (torch.randn(2, *SHAPE),)
    student = prepare_qat_fx(model.train(), mapping, example, backend_config=backend)
    return Host(
        student.eval(),
        lambda s: convert_fx(s.eval(), backend_config=backend),
        zaq_fx.correct_bias,
    )


def pt2e(model: nn.Module, spec: PWLQSpec) -> Host:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

    import zaq_pt2e

    batch = torch.export.Dim("batch", min=1, max=512)
    exported = torch.export.export(
        model, (torch.randn(4, *SHAPE),), dynamic_shapes=({0: batch},)
    ).module()
    quantizer = zaq_pt2e.PWLQQuantizer(spec, qat=True, bias_correction=False)
    student = prepare_qat_pt2e(exported, quantizer)
    zaq_pt2e.set_training(student, False)
    return Host(student, convert_pt2e, zaq_pt2e.correct_bias)


def nncf(model: nn.Module, spec: PWLQSpec) -> Host:
    import zaq_nncf

    images = [torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(3))]
    # Its own quantize has corrected biases already.
    return Host(zaq_nncf.quantize(model, images, spec), zaq_nncf.strip, None)


HOSTS = {"fx": fx, "pt2e": pt2e, "nncf": nncf}


@pytest.fixture(params=HOSTS, scope="module")
def prepared(request: pytest.FixtureRequest) -> Callable[[], tuple[nn.Module, Host]]:
    def make() -> tuple[nn.Module, Host]:
        return float_model(), HOSTS[request.param](float_model(), PWLQSpec(bits=3))

    return make


@pytest.mark.parametrize("corrected", [False, True], ids=["", "corrected"])
def test_fine_tuned_and_converted(
    prepared: Callable[[], tuple[nn.Module, Host]], corrected: bool
) -> None:
    model, host = prepared()
    student = host.student
    correct = host.correct if corrected else None
    if corrected and correct is None:
        pytest.skip("the host's own preparation corrects biases")
    result = zero_shot_finetune(student, CONFIG, image_shape=SHAPE, correct=correct, progress=False)
    assert result.best is not None
    assert result.best.divergence <= result.start.divergence
    assert len(result.blocks) >= 3
    assert all(b.after <= b.before for b in result.blocks)
    assert len(result.layer_weights) >= 2
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(5))
    simulated = student(x).detach()
    assert float((simulated - model(x)).detach().abs().mean()) < float(simulated.std())
    converted = host.convert(student)(x)
    # Sums are rounded to the output's 8 bits in another order.
    assert converted.std() > 0
    assert float((converted - simulated).abs().max()) <= 0.03 * float(simulated.abs().max())


def test_blocks_and_taps(prepared: Callable[[], tuple[nn.Module, Host]]) -> None:
    _, host = prepared()
    student = host.student
    x = torch.randn(4, *SHAPE)
    student(x)
    blocks = find_blocks(student, twin(student), x)
    assert [len(b.weights) for b in blocks] == [1, 3, 1]
    taps = find_taps(student, x)
    assert taps == find_taps(twin(student), x)
    assert len(taps) >= 2


@pytest.mark.slow
def test_the_loader_in_a_plain_loop(prepared: Callable[[], tuple[nn.Module, Host]]) -> None:
    _, host = prepared()
    student = host.student
    student(torch.randn(16, *SHAPE))
    config = CONFIG.with_changes(images="mixed", alpha=0.1, latent_dim=8, generator_width=4)
    loader = ZeroShotLoader(student, SHAPE, config)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    for images, targets in loader:
        loss = loader.loss(student(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert {"KL", "D_f", "features", "G D_o"} <= set(loader.losses)


def test_a_graph_in_training_mode_is_refused() -> None:
    import zaq_pt2e

    host = pt2e(float_model(), PWLQSpec(bits=3))
    zaq_pt2e.set_training(host.student, True)
    with pytest.raises(ValueError, match="move_exported_model_to_eval"):
        zero_shot_finetune(host.student, CONFIG, image_shape=SHAPE, progress=False)
