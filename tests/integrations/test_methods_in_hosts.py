"""A published method on what a host's stock call has prepared, then the host's own conversion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import zaq_fx
import zaq_pt2e
from zaq_plugin.pwlq import PWLQSpec
from zaq_timm.digits import digits_model, load_digits_split

SPEC = PWLQSpec(bits=2, overflow="allowed")  # guarded levels leave biases little to mend
METHODS = ("pwlq", "pwlq+gptq", "adaround", "brecq", "zaq")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A residual network that has learned something: noise is no test of methods that learn."""
    return digits_model()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_digits_split().train_images[:128]


@pytest.fixture(scope="module")
def fresh() -> Tensor:
    return load_digits_split().test_images[:200]


def through_fx(model: nn.Module, x: Tensor, method: str | None, **options: Any) -> nn.Module:
    backend = zaq_fx.pwlq_backend_config()
    mapping = zaq_fx.pwlq_qconfig_mapping(SPEC, 7)
    ready = zaq_fx.prepare_model(model)
    prepared = prepare_fx(ready, mapping, (x[:4],), backend_config=backend)
    if method is None:
        zaq_fx.calibrate(prepared, list(x.split(16)), bias_correction=False)
    else:
        zaq_fx.quantize(prepared, list(x.split(16)), method=method, **options)
    return convert_fx(prepared, backend_config=backend)


def through_pt2e(model: nn.Module, x: Tensor, method: str | None, **options: Any) -> nn.Module:
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (x[:4],), dynamic_shapes=shapes)
    quantizer = zaq_pt2e.PWLQQuantizer(SPEC, 7, bias_correction=False)
    prepared = prepare_pt2e(program.module(), quantizer)
    if method is None:
        zaq_pt2e.calibrate(prepared, list(x.split(16)), bias_correction=False)
    else:
        zaq_pt2e.quantize(prepared, list(x.split(16)), method=method, **options)
    return convert_pt2e(prepared)


ROUTES = {"fx": through_fx, "pt2e": through_pt2e}


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("method", METHODS)
def test_methods_lower_the_error_of_the_converted_model(
    model: nn.Module, images: Tensor, fresh: Tensor, route: Callable[..., nn.Module], method: str
) -> None:
    with torch.no_grad():
        expected = model(fresh)

    def error(method: str | None, **options: Any) -> float:
        quantized = route(model, images, method, **options)
        with torch.no_grad():
            return float((quantized(fresh) - expected).square().mean())

    effort = 0.1 if method == "zaq" else 0.5
    most = 0.97 if method == "pwlq" else 0.9  # of which only the bias correction counts here
    assert error(method, effort=effort, batch_size=16) < most * error(None)


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_the_users_model_is_not_touched(
    model: nn.Module, images: Tensor, route: Callable[..., nn.Module]
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    route(model, images, "pwlq+gptq")
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_without_batches_images_come_from_the_float_model(
    model: nn.Module, images: Tensor, fresh: Tensor
) -> None:
    prepared = zaq_fx.prepare(model, (images[:4],), SPEC, 7)
    with pytest.raises(ValueError, match="pass float_model=, the model that was prepared, and"):
        zaq_fx.quantize(prepared)
    notes = zaq_fx.quantize(
        prepared, float_model=model, image_shape=(1, 8, 8), count=64, effort=0.5
    )
    assert notes == ["gptq: error feedback in 10 of 10 layers"]
    with torch.no_grad():
        agree = zaq_fx.convert(prepared)(fresh).argmax(1) == model(fresh).argmax(1)
    assert agree.float().mean() > 0.95


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("lbq", "second-tensor puts weights together from several tensors; use one of one grid"),
        ("dfq", "equalise changes the float model, which has been prepared already; use"),
        ("pwqlq", "no strategy 'pwqlq'"),
    ],
)
def test_what_does_not_go_with_a_prepared_model(
    model: nn.Module, images: Tensor, method: str, words: str
) -> None:
    prepared = zaq_fx.prepare(model, (images[:4],), SPEC, 7)
    with pytest.raises(ValueError, match=words):
        zaq_fx.quantize(prepared, [images], method)
    with pytest.raises(ValueError, match="methods work on images"):
        zaq_fx.quantize(prepared, [images[0]], "pwlq")
    with pytest.raises(ValueError, match="quantize expected a model from prepare_fx"):
        zaq_fx.quantize(torch.fx.symbolic_trace(model), [images])
