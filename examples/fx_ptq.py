"""PWLQ weights in torch.ao's FX flow: a trained network to int8 kernels, with the stock functions.

Run: python examples/fx_ptq.py
"""

import torch
from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import zaq_fx
from zaq_plugin import PWLQSpec
from zaq_timm.digits import digits_model, load_digits_split


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 in percent."""
    return 100 * float((model(images).argmax(1) == labels).double().mean())


def main() -> None:
    """Quantize the digits network to 4 MAC bits (5 stored) and 8-bit activations."""
    torch.manual_seed(0)
    model: nn.Module = digits_model()
    data = load_digits_split()
    test = (data.test_images, data.test_labels)
    calibration = data.train_images[:256].split(32)

    # The three lines that make the stock flow quantize to PWLQ levels:
    model = zaq_fx.prepare_model(model)  # unwraps layers that hide BatchNorm or weights
    backend = zaq_fx.pwlq_backend_config()
    mapping = zaq_fx.pwlq_qconfig_mapping(PWLQSpec(bits=4))

    prepared = prepare_fx(model, mapping, (calibration[0],), backend_config=backend)
    zaq_fx.calibrate(prepared, calibration)  # ranges, then bias correction
    planned = zaq_fx.audit(prepared)
    converted = convert_fx(prepared, backend_config=backend)

    print(zaq_fx.audit(converted, planned))
    print(f"float: {accuracy(model, *test):.2f} %, on int8 kernels: ", end="")
    print(f"{accuracy(converted, *test):.2f} %")

    # The same in two calls, with 4-bit activations (clamped to 4 bits on the int8 kernels):
    small = zaq_fx.prepare(digits_model(), (calibration[0],), PWLQSpec(bits=4), 4)
    small = zaq_fx.convert(zaq_fx.calibrate(small, calibration))
    print(f"with 4-bit activations: {accuracy(small, *test):.2f} %")


if __name__ == "__main__":
    main()
