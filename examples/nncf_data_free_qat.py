"""PWLQ weights through NNCF and training without any data: quantize, fine-tune, strip, export.

Run it with:

    python examples/nncf_data_free_qat.py

It quantizes the digits network to 3 MAC bits (4 stored) and 4-bit activations, on images that are
made from the network itself, fine-tunes it on more of these, and runs the result in OpenVINO.
"""

import warnings
from collections.abc import Callable

import openvino
import torch
from torch import Tensor

import zaq_nncf
from zaq_plugin import PWLQSpec, ZeroShotConfig, zero_shot_finetune
from zaq_timm.digits import IMAGE_SHAPE, digits_model, load_digits_split

CONFIG = ZeroShotConfig.preset("fast", steps=60, distilled_images=128, validate_every=20)


def main() -> None:
    """Quantizes, fine-tunes, strips, exports; test images only measure."""
    model, digits = digits_model(), load_digits_split()

    def report(name: str, run: Callable[[Tensor], Tensor]) -> None:
        hits = run(digits.test_images).argmax(1) == digits.test_labels
        print(f"{name}: {100 * hits.float().mean().item():.2f} %", flush=True)

    report("float32", model)
    student = zaq_nncf.quantize(
        model, spec=PWLQSpec(bits=3), activations=4, image_shape=IMAGE_SHAPE, config=CONFIG
    )
    report("quantized without data", student)
    zero_shot_finetune(student, CONFIG, image_shape=IMAGE_SHAPE, float_model=model)
    report("fine-tuned without data", student)
    stripped = zaq_nncf.strip(student)
    print(zaq_nncf.audit(stripped))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OpenVINO reads modules with torch.jit.trace
        converted = openvino.convert_model(stripped, example_input=digits.test_images[:2])
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # newer processors take bfloat16 between kernels
    compiled = openvino.compile_model(converted, "CPU", exact)
    report("in OpenVINO", lambda images: torch.from_numpy(compiled(images.numpy())[0]))


if __name__ == "__main__":
    main()
