"""Everything that `zaq-quantize doctor` finds, as plain values and as text."""

from __future__ import annotations

import logging
from dataclasses import asdict
from importlib.metadata import version
from platform import platform, python_version
from typing import Any

from zaq_plugin.student.host import find_host, host_names
from zaq_timm.doctor.machine import (
    EXACT,
    SATURATES,
    Processor,
    compilers,
    measure_kernels,
    memory,
    processor,
)
from zaq_timm.doctor.packages import OK, packages

LITTLE_MEMORY = 4 * 10**9
_SIGNS = {"ok": "ok  ", "note": "note", "problem": "BAD "}


def examine() -> dict[str, Any]:
    """Looks at everything; plain JSON values.

    ``problems`` are what keeps something that is installed from working, ``notes`` what to know or
    what could be added. The exit code is 1 if there is a problem.
    """
    import torch

    findings: dict[str, Any] = {
        "zaq_plugin": version("zaq_plugin"),
        "python": python_version(),
        "system": platform(),
        "processor": asdict(processor()),
        "memory": dict(zip(("total", "free"), memory(), strict=True)),
        "compilers": compilers(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": [
            asdict(p) | {"extras": list(p.extras), "command": p.command} for p in packages()
        ],
        "hosts": {name: _host(name) for name in host_names()},
        "int8_kernels": [asdict(k) | {"advice": k.advice} for k in measure_kernels()],
    }
    findings["problems"], findings["notes"] = _problems(findings), _notes(findings)
    return findings


def _host(name: str) -> str:
    """``ready``, or why not."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch says by log what is missing for other purposes
    try:
        find_host(name)
    except (ImportError, ValueError) as error:
        return str(error)
    finally:
        logging.disable(before)
    return "ready"


def _problems(findings: dict[str, Any]) -> list[str]:
    return [
        f"{p['name']} {p['installed'] or ''} is {p['status']} (accepted: {p['accepted'] or 'any'})"
        f"; {p['command']}"
        for p in findings["packages"]
        if p["status"] != OK and (p["installed"] or not p["extras"])
    ]


def _notes(findings: dict[str, Any]) -> list[str]:
    notes = [
        f"int8 kernels of {k['runtime']} saturate here; exact: {k['advice']}"
        for k in findings["int8_kernels"]
        if k["answer"] == SATURATES
    ]
    missing = [p for p in findings["packages"] if not p["installed"] and p["extras"]]
    notes += [f"{p['name']} is not installed; {p['command']}" for p in missing]
    if not set(findings["compilers"]) - {"ninja"}:
        notes.append(
            "no C++ compiler: NNCF's compiled kernels and zaq_pt2e.lower need one (Debian: "
            "apt-get install g++)"
        )
    free = findings["memory"]["free"]
    if free is not None and free < LITTLE_MEMORY:
        notes.append(f"{free / 1e9:.1f} GB of memory are free; give zaq-quantize run a --memory")
    return notes


def lines(findings: dict[str, Any]) -> list[str]:
    """The findings as text, at most a hundred columns where names allow it."""
    chip = Processor(**findings["processor"])
    total, free = findings["memory"]["total"], findings["memory"]["free"]
    room = "unknown" if total is None else f"{total / 1e9:.1f} GB, {(free or 0) / 1e9:.1f} free"
    page = [
        f"zaq_plugin {findings['zaq_plugin']}, Python {findings['python']}, {findings['system']}",
        "",
        f"processor   {chip.name} ({chip.machine}), {chip.cores} core(s)",
        f"            VNNI {_yes(chip.vnni)}, AMX {_yes(chip.amx)}",
        f"memory      {room}",
        f"GPUs        {', '.join(findings['gpus']) or 'none'}",
        f"compilers   {', '.join(findings['compilers']) or 'none'}",
        "",
        "int8 kernels, measured with sums that exceed 16 bits",
    ]
    for k in findings["int8_kernels"]:
        sign = _SIGNS["ok" if k["answer"] == EXACT else "note"]
        page.append(f"  {sign}  {k['runtime']:<12} {k['answer']}" + _after(k["reason"]))
    page += ["", "hosts"]
    for name, state in findings["hosts"].items():
        sign = _SIGNS["ok" if state == "ready" else "note"]
        page.append(f"  {sign}  {name:<12} {state}")
    page += ["", "packages"]
    for p, narrower in once_each(findings["packages"]):
        bad = p["status"] != OK and (p["installed"] or not p["extras"])
        sign = _SIGNS["ok" if p["status"] == OK else "problem" if bad else "note"]
        accepted = (p["accepted"] or "any") + narrower
        shown = p["installed"] or p["status"]
        page.append(
            f"  {sign}  {p['name']:<12} {shown:<12} accepted {accepted:<16}" + _after(p["command"])
        )
    for title in ("problems", "notes"):
        if findings[title]:
            page += ["", title, *(f"  {text}" for text in findings[title])]
    return [line.rstrip() for line in page]


def once_each(packages: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Packages, each once, with what extras narrow its range to; one that does not fit stays."""
    rows = []
    fits = [p for p in packages if p["status"] == OK]
    for package in packages:
        same = [p for p in fits if p["name"] == package["name"] and p is not package]
        if package in fits and package["extras"] and any(not p["extras"] for p in same):
            continue
        narrower = (
            ""
            if package["extras"]
            else "".join(
                f"; {p['accepted']} for {', '.join(p['extras'])}" for p in same if p["extras"]
            )
        )
        rows.append((package, narrower))
    return rows


def _yes(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _after(text: str | None) -> str:
    return f"  {text}" if text else ""
