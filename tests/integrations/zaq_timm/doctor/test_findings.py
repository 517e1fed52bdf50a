"""The doctor: what it reads, what it measures, and what it says to do."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from processor import KERNELS_ARE_EXACT

from zaq_fx.checking import kernels_saturate, loses_something
from zaq_timm import cli
from zaq_timm.doctor import machine
from zaq_timm.doctor.findings import examine, lines, once_each
from zaq_timm.doctor.machine import EXACT, SATURATES, UNKNOWN, measure, memory, processor, warning
from zaq_timm.doctor.packages import MISSING, OK, TOO_NEW, TOO_OLD, packages

CPUINFO = "model name\t: Some Chip\nflags\t\t: fpu avx2 {}\n"


@pytest.mark.parametrize(
    ("flags", "vnni", "amx"),
    [("", False, False), ("avx512_vnni", True, False), ("avx_vnni amx_int8", True, True)],
)
def test_flags_of_the_processor(tmp_path: Path, flags: str, vnni: bool, amx: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO.format(flags))
    chip = processor(path)
    assert (chip.name, chip.vnni, chip.amx) == ("Some Chip", vnni, amx)
    assert chip.cores >= 1


def test_a_system_that_does_not_tell_is_unknown_not_no(tmp_path: Path) -> None:
    chip = processor(tmp_path / "nowhere")
    assert chip.vnni is None
    assert chip.amx is None
    assert memory(tmp_path / "nowhere") == (None, None)


def test_memory_is_read_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    600 kB\n")
    assert memory(path) == (1_024_000, 614_400)


REQUIREMENTS = [
    "torch<2.16,>=2.13",
    "rich>=9999",
    'numpy<0.1; extra == "onnx"',
    'nobodys-package (>=1,<2) ; extra == "fx"',
    'safetensors>=0.4; extra == "a"',
    'safetensors>=0.5; extra == "b"',
    'pytest>=8; extra == "test"',
    'zaq_plugin[fx]; extra == "all"',
]


def test_packages_are_judged_by_the_range_and_the_command_brings_one_that_fits() -> None:
    by_name = {p.name: p for p in packages(REQUIREMENTS)}
    assert set(by_name) == {"torch", "rich", "numpy", "nobodys-package", "safetensors"}
    assert {name: p.status for name, p in by_name.items()} == {
        "torch": OK,
        "rich": TOO_OLD,
        "numpy": TOO_NEW,
        "nobodys-package": MISSING,
        "safetensors": OK,
    }
    assert by_name["torch"].needed
    assert not by_name["numpy"].needed
    assert by_name["torch"].command is None
    assert by_name["rich"].command == "pip install 'rich>=9999'"
    assert by_name["numpy"].command == "pip install 'numpy<0.1'"
    assert by_name["nobodys-package"].command == "pip install 'zaq_plugin[fx]'"
    assert by_name["nobodys-package"].accepted == ">=1, <2"
    assert by_name["safetensors"].accepted == ">=0.5"
    assert by_name["safetensors"].extras == ("a", "b")


def test_an_extra_narrows_what_is_always_needed_for_its_own_users_only() -> None:
    rows = packages(["torch>=2.0", 'torch<1.0; extra == "old"'])
    assert [(p.name, p.needed, p.extras, p.accepted, p.status) for p in rows] == [
        ("torch", True, (), ">=2.0", OK),
        ("torch", False, ("old",), "<1.0", TOO_NEW),
    ]


def test_a_package_is_listed_once_with_what_extras_narrow_its_range_to() -> None:
    def shown(*requirements: str) -> list[str]:
        rows = [asdict(p) | {"command": p.command} for p in packages(requirements)]
        return [f"{p['accepted']}{narrower}" for p, narrower in once_each(rows)]

    fits = ["torch>=2.0", 'torch<99; extra == "a"', 'numpy>=1; extra == "a"']
    assert shown(*fits) == [">=2.0; <99 for a", ">=1"]
    assert shown("torch>=2.0", 'torch<1.0; extra == "old"') == [">=2.0", "<1.0"]  # which to mend


def test_every_host_and_runtime_of_setup_cfg_is_looked_at() -> None:
    names = {p.name for p in packages()}
    assert {"torch", "torchao", "nncf", "openvino", "onnx", "onnxruntime", "timm"} <= names
    assert "pytest" not in names
    assert {p.name for p in packages() if p.needed} == {"torch", "numpy", "safetensors", "rich"}


def test_the_probe_of_torch_agrees_with_the_processors_flags() -> None:
    assert kernels_saturate() is not KERNELS_ARE_EXACT
    assert measure("torch").answer == (EXACT if KERNELS_ARE_EXACT else SATURATES)


def test_the_probe_sees_kernels_that_add_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stood in for by weights of which two products fit: the sum comes out as 16 bits leave it."""
    exact = torch.ops.quantized.conv2d_prepack

    def saturated(weight: torch.Tensor, *rest: object) -> object:
        ints = torch.full_like(weight.int_repr(), 32767 // (2 * 255))
        scales, zeros = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
        return exact(torch._make_per_channel_quantized_tensor(ints, scales, zeros, 0), *rest)

    monkeypatch.setattr(torch.ops.quantized, "conv2d_prepack", saturated)
    assert loses_something()


def test_warnings_name_the_safe_setting_and_say_nothing_where_kernels_are_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "probe", lambda runtime: lambda: True)
    text = warning("torch")
    assert text is not None
    assert "saturate on this processor" in text
    assert "activations=7, input_bits=7" in text
    assert "reduce_range=True" in str(warning("onnxruntime"))
    monkeypatch.setattr(machine, "probe", lambda runtime: lambda: False)
    assert warning("torch") is None


def test_a_runtime_that_is_not_there_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    state = measure("openvino")
    assert state.answer == UNKNOWN
    assert state.reason
    assert warning("openvino") is None


def test_the_command_in_json_and_in_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = examine()
    monkeypatch.setattr("zaq_timm.doctor.findings.examine", lambda: findings)
    assert cli.main(["doctor", "--json"]) == (1 if findings["problems"] else 0)
    assert json.loads(capsys.readouterr().out) == findings
    cli.main(["doctor"])
    text = capsys.readouterr().out
    for word in ("processor", "VNNI", "memory", "compilers", "int8 kernels", "pt2e", "onnxruntime"):
        assert word in text

    findings = {**findings, "hosts": {**findings["hosts"], "pt2e": "zaq_pt2e needs torchao"}}
    findings["int8_kernels"] = [
        {"runtime": "torch", "answer": SATURATES, "reason": "", "advice": "x"}
    ]
    findings["problems"], findings["notes"] = ["torchao 0.1 is too old"], ["saturate here"]
    text = "\n".join(lines(findings))
    assert "note  pt2e         zaq_pt2e needs torchao" in text
    assert "note  torch        saturates" in text
    assert "problems\n  torchao 0.1 is too old" in text
    assert cli.main(["doctor"]) == 1


def test_without_torch_the_command_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zaq_timm.doctor.findings", None)
    assert cli.main(["doctor"]) == 1
    assert "zaq_plugin cannot be imported" in capsys.readouterr().err


def test_a_run_warns_only_where_a_row_has_run_on_kernels_that_saturate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from zaq_timm.zoo.command import notes_of

    monkeypatch.setattr(machine, "probe", lambda runtime: lambda: True)
    assert notes_of([{"host": "pt2e"}, {}]) == []
    (note,) = notes_of([{"host": "pt2e"}, {"host": "fx"}])
    assert note.startswith("rows of host fx: int8 kernels of torch saturate")
