"""The gate between an integration and a host's versions, and the sentences it says."""

import configparser
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from zaq_plugin import _versions
from zaq_plugin._versions import check_version, release, require_torch, require_version

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2.13", (2, 13)),
        ("2.15.0+cu130", (2, 15, 0)),
        ("2.16.0a0+git1234abc", (2, 16, 0)),
        ("2.14.1rc2", (2, 14, 1)),
        (" v0.18.0 ", (0, 18, 0)),
    ],
)
def test_release_reads_the_leading_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert release(text) == numbers


def test_release_refuses_what_is_no_version() -> None:
    with pytest.raises(ValueError, match="not a version: 'main'; expected something like '2.15.0'"):
        release("main")


@pytest.mark.parametrize("installed", ["2.13", "2.13.0", "2.13.0+cpu", "2.14.2", "2.15.9.dev3"])
def test_versions_in_the_range_pass(installed: str) -> None:
    check_version(installed, "torch", "2.13", "2.16", "zaq_fx")


@pytest.mark.parametrize("installed", ["2.12.1", "1.13.1", "2.9.0+cpu", "2.2"])
def test_an_older_host_is_named_with_the_way_out(installed: str) -> None:
    with pytest.raises(ImportError) as caught:
        check_version(installed, "torch", "2.13", "2.16", "zaq_fx")
    assert str(caught.value) == (
        f"zaq_fx: torch {installed} is older than 2.13, the oldest version that zaq_fx supports. "
        "Install a supported one with: pip install 'torch>=2.13,<2.16'."
    )
    assert caught.value.name == "zaq_fx"


@pytest.mark.parametrize("installed", ["2.16.0", "2.16.0a0+git1", "2.100", "3.0"])
def test_a_newer_host_is_named_with_the_way_out(installed: str) -> None:
    with pytest.raises(ImportError) as caught:
        check_version(installed, "torch", "2.13", "2.16", "zaq_fx")
    assert str(caught.value) == (
        f"zaq_fx: torch {installed} is newer than any version that zaq_fx was tested with "
        "(below 2.16). Install a supported one with: pip install 'torch>=2.13,<2.16', or look for "
        f"a newer zaq_plugin that supports torch {installed}."
    )


def test_a_missing_host_is_named_with_its_extra() -> None:
    with pytest.raises(ImportError) as caught:
        require_version("no-such-host-of-zaq", "0.17", "0.19", "zaq_pt2e", "pt2e")
    assert str(caught.value) == (
        "zaq_pt2e needs no-such-host-of-zaq (>=0.17, <0.19), which is not installed. "
        "Install it with: pip install 'zaq_plugin[pt2e]'."
    )


def test_an_installed_host_is_looked_up_by_its_distribution() -> None:
    installed = metadata.version("numpy")
    require_version("numpy", installed, f"{release(installed)[0] + 1}", "zaq_pt2e", "pt2e")
    with pytest.raises(ImportError, match=rf"numpy {installed} is newer than any version"):
        require_version("numpy", "0.1", "0.2", "zaq_pt2e", "pt2e")


@pytest.mark.parametrize(
    ("version", "passes"), [("2.13.0", True), ("2.12.9", False), ("2.16", False)]
)
def test_require_torch_asks_the_running_torch(
    monkeypatch: pytest.MonkeyPatch, version: str, passes: bool
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    if passes:
        require_torch("zaq_fx")
    else:
        with pytest.raises(ImportError, match=f"^zaq_fx: torch {version} is"):
            require_torch("zaq_fx")


def test_the_gate_and_the_package_metadata_name_the_same_range() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].split()
    (requirement,) = (Requirement(line) for line in lines if line.startswith("torch>"))
    bounds = {(part.operator, part.version) for part in requirement.specifier}
    assert bounds == {(">=", _versions.TORCH_MINIMUM), ("<", _versions.TORCH_BELOW)}
