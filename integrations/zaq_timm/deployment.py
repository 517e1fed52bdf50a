"""The demo's last step but the page: the network as an ONNX file that stock runtimes run.

The model that a host converted to int8 is exported, packed to its stored bits, and verified: the
weights bit for bit, the outputs under ONNX Runtime and, where it is installed, OpenVINO.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

FILE = "digits.onnx"
VERIFIED_IMAGES = 64


@dataclass(frozen=True)
class Shipped:
    """An exported network.

    Attributes:
        path: The file.
        bytes: Its size.
        int8_bytes: Its size with int8 weights.
        float_bytes: Bytes of its weights and biases in float32.
        integer_only: Whether ONNX Runtime computes in integers from end to end.
        runtimes: Who ran it.
        integer_layers: Convolutions and linear layers on int8 kernels of ONNX Runtime.
    """

    path: Path
    bytes: int
    int8_bytes: int
    float_bytes: int
    integer_only: bool
    runtimes: tuple[str, ...]
    integer_layers: int

    def __str__(self) -> str:
        whole = "nothing but integers between" if self.integer_only else "floats between some"
        return (
            f"{self.path.name}: {self.bytes / 1000:.1f} kB packed, {self.int8_bytes / 1000:.1f} kB "
            f"as int8, {self.float_bytes / 1000:.1f} kB as float32; verified under "
            f"{' and '.join(self.runtimes)}, {self.integer_layers} layers on int8 kernels, "
            f"{whole} layers"
        )


def ship(converted: nn.Module, images: Tensor, out: Path, batches: Sequence[Tensor]) -> Shipped:
    """Exports a converted model, verifies the file, and returns what there is to say.

    Args:
        converted: from a host.
        images: what to verify on.
        out: the folder to write to.
        batches: calibration images, for tensors that the host left in float.

    Raises:
        ImportError: onnx, onnxscript or ONNX Runtime is missing.
        ValueError: the file does not compute what the model does.
    """
    import zaq_onnx

    runtimes = ("onnxruntime", "openvino") if find_spec("openvino") else ("onnxruntime",)
    path = out / FILE
    exported = zaq_onnx.export(
        converted, (batches[0],), path, calibration=batches, reduce_range=True
    )
    report = zaq_onnx.verify(path, converted, images[:VERIFIED_IMAGES], runtimes=runtimes).require()
    return Shipped(
        path,
        exported.bytes,
        exported.int8_bytes,
        exported.float_bytes,
        report.integer_only,
        tuple(run.name for run in report.runtimes),
        report.runtimes[0].integer_layers,
    )
