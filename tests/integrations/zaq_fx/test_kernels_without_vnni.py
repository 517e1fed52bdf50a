"""Int8 kernels as processors without VNNI have them: libraries that can are told to use those.

Each process is asked whether its kernels saturate, with weights that must; where they do not, the
libraries did not listen.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="only x86 has kernels that saturate"
)

WITHOUT_VNNI = {"ONEDNN_MAX_CPU_ISA": "AVX2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}

PROGRAM = """
import sys
import torch
from zaq_plugin.pwlq import PWLQSpec, UniformSpec, quantize

torch.backends.quantized.engine = sys.argv[1]
ops = torch.ops.quantized

def error(groups, shape, spec):
    # The largest error of a layer whose inputs are 255 or 0, whatever makes a channel largest.
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    q = quantize(w, spec)
    integers = q.integer_weight().float()
    weight = torch.quantize_per_channel(
        integers, torch.ones(len(w)), torch.zeros(len(w), dtype=torch.int), 0, torch.qint8)
    worst = 0.0
    for channel in (3, 10):
        x = 255.0 * (integers[channel] > 0)
        if groups > 1:
            x = x.repeat(groups, 1, 1)
        x = x.unsqueeze(0).contiguous()
        exact = (torch.nn.functional.conv2d(x, integers, groups=groups) if w.dim() == 4
                 else torch.nn.functional.linear(x, integers))
        step = float(exact.abs().max()) / 100
        given = torch.quantize_per_tensor(x, 1.0, 0, torch.quint8)
        if w.dim() == 4:
            packed = ops.conv2d_prepack(weight, None, [1, 1], [0, 0], [1, 1], groups)
            found = ops.conv2d(given, packed, step, 120)
        else:
            found = ops.linear(given, ops.linear_prepack(weight, None), step, 120)
        worst = max(worst, float((found.dequantize() - exact).abs().max()) / step)
    return worst

LAYERS = {"dense": (1, (32, 64, 3, 3)), "stem": (1, (32, 3, 3, 3)), "gray": (1, (32, 1, 3, 3)),
          "odd": (1, (32, 33, 3, 3)), "grouped": (4, (32, 16, 3, 3)),
          "depthwise": (64, (64, 1, 3, 3)), "linear": (1, (32, 64))}
for name, (groups, shape) in LAYERS.items():
    for spec in ("PWLQSpec(4{})", "PWLQSpec(6{})", "UniformSpec(8{})"):
        kept, free = (error(groups, shape, eval(spec.format(more)))
                      for more in ("", ", overflow='allowed'"))
        print(name, kept, free)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fbgemm", "onednn"])
def test_no_layer_saturates(engine: str) -> None:
    """Depthwise layers of FBGEMM included; without the constraint most would."""
    environment = {**os.environ, **WITHOUT_VNNI}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, engine],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 21
    for name, error, _ in lines:
        assert float(error) <= 0.501, (engine, name)
    saturating = {name for name, _, free in lines if float(free) > 1}
    assert {"dense", "grouped", "linear"} <= saturating
    assert ("depthwise" in saturating) == (engine == "fbgemm")


ANSWERS = """
import sys
import torch
from networks import Net, perturb
import zaq_fx
from zaq_plugin.pwlq import PWLQSpec

torch.manual_seed(0)
model, images = perturb(Net(10)).eval(), torch.randn(8, 3, 17, 17)
prepared = zaq_fx.prepare(model, (images,), PWLQSpec(4, symmetry="symmetric"))
zaq_fx.calibrate(prepared, [images])
if sys.argv[2] == "write":
    torch.save(prepared.state_dict(), sys.argv[1])
prepared.load_state_dict(torch.load(sys.argv[1]))
torch.save(zaq_fx.convert(prepared)(images), sys.argv[1] + "." + sys.argv[2])
"""


@pytest.mark.slow
def test_a_converted_model_answers_the_same(tmp_path: Path) -> None:
    """Bit for bit, with VNNI and without; ranges are those of one processor, float sums differ."""
    path = tmp_path / "prepared.pt"
    support = Path(__file__).parents[2] / "support"
    for what, more in (("write", {}), ("read", WITHOUT_VNNI)):
        environment = {**os.environ, **more}
        environment["PYTHONPATH"] = os.pathsep.join([str(support), *sys.path])
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", ANSWERS, str(path), what],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    written, read = (torch.load(f"{path}.{what}") for what in ("write", "read"))
    assert written.std() > 0
    assert torch.equal(written, read)
