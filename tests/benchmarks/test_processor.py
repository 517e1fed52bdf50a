"""What benchmarks say of the processor."""

from pathlib import Path

import pytest

from benchmarks import processor as module


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("sse avx avx2 fma", "AVX2, no VNNI"),
        ("avx2 avx512f avx512bw", "AVX-512, no VNNI"),
        ("avx2 avx512f avx512_vnni amx_int8", "AVX-512, AMX, VNNI"),
        ("avx2 avx_vnni", "AVX2, AVX-VNNI"),
    ],
)
def test_instructions_and_limits_are_told(
    monkeypatch: pytest.MonkeyPatch, flags: str, text: str
) -> None:
    for name in module.LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: f"flags : {flags}\n")
    assert module.processor() == text
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert module.processor() == f"{text}, ONEDNN_MAX_CPU_ISA=AVX2"
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    assert module.processor() == "aarch64"
