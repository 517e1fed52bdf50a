"""Post-training quantization in torchao's PT2E: PWLQ weights on stock int8 kernels.

Run it with:

    python examples/pt2e_ptq.py

It quantizes the digits network to 4 MAC bits, calibrates on training images, prints what became of
every layer, lowers the model to Inductor's int8 kernels, and saves it with packed weights.
"""

import os
import tempfile

import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from zaq_plugin.pwlq import PWLQSpec
from zaq_pt2e import PWLQQuantizer, audit, lower, pack
from zaq_timm.digits import digits_model, load_digits_split


@torch.no_grad()
def main() -> None:
    """Quantizes, converts, lowers, saves."""
    model, digits = digits_model(), load_digits_split()
    images = digits.train_images[:64]

    def accuracy(net: nn.Module) -> str:
        hits = net(digits.test_images).argmax(1) == digits.test_labels
        return f"{100 * hits.float().mean().item():.2f} %"

    dynamic = ({0: torch.export.Dim("batch", min=2)},)
    exported = torch.export.export(model, (images,), dynamic_shapes=dynamic).module()
    prepared = prepare_pt2e(exported, PWLQQuantizer(PWLQSpec(bits=4)))
    for batch in digits.train_images[:512].split(64):
        prepared(batch)
    converted = convert_pt2e(prepared)

    lowered = lower(converted, (digits.test_images,))
    print(audit(converted, lowered=lowered))
    print("float32:", accuracy(model), " converted:", accuracy(converted), end="")
    print(" on int8 kernels:", accuracy(lowered))

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "digits.pt2")
        program = torch.export.export(pack(converted), (images,), dynamic_shapes=dynamic)
        torch.export.save(program, path)
        loaded = torch.export.load(path).module()
        print("packed, saved and loaded:", accuracy(loaded))


if __name__ == "__main__":
    main()
