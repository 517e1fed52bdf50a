"""Which versions of a host an integration was tested with, and what to say about any other.

An integration calls this first thing in its `__init__`, so that a host which has moved on is met
with one clear sentence at import, not with a failure somewhere inside a conversion:

    from zaq_plugin._versions import require_torch
    require_torch("zaq_fx")
"""

import re
from importlib import metadata

TORCH_MINIMUM = "2.13"
TORCH_BELOW = "2.16"


def release(version: str) -> tuple[int, ...]:
    """Returns the numbers a version starts with; what follows them (`rc1`, `+cpu`) is left out.

    >>> release("2.15.0a0+git1234")
    (2, 15, 0)

    Raises:
        ValueError: the text does not begin with a number.
    """
    match = re.match(r"v?(\d+(?:\.\d+)*)", version.strip())
    if match is None:
        raise ValueError(f"not a version: {version!r}; expected something like '2.15.0'")
    return tuple(int(part) for part in match.group(1).split("."))


def _padded(numbers: tuple[int, ...]) -> tuple[int, ...]:
    return numbers + (0,) * (4 - len(numbers))


def check_version(installed: str, package: str, minimum: str, below: str, integration: str) -> None:
    """Raises unless `minimum <= installed < below`; a pre-release of `below` counts as `below`.

    Args:
        installed: the version that was found.
        package: the host's distribution name, as pip knows it.
        minimum: the oldest version that the integration works with.
        below: the first version that it was not tested with.
        integration: the package that asks, such as `zaq_pt2e`.

    Raises:
        ImportError: naming what is installed, what is needed, and the pip command that helps.
    """
    version = _padded(release(installed))
    if version < _padded(release(minimum)):
        problem, change = (
            f"is older than {minimum}, the oldest version that {integration} supports",
            "",
        )
    elif version >= _padded(release(below)):
        problem = f"is newer than any version that {integration} was tested with (below {below})"
        change = f", or look for a newer zaq_plugin that supports {package} {installed}"
    else:
        return
    raise ImportError(
        f"{integration}: {package} {installed} {problem}. "
        f"Install a supported one with: pip install '{package}>={minimum},<{below}'{change}.",
        name=integration,
    )


def require_version(package: str, minimum: str, below: str, integration: str, extra: str) -> None:
    """Raises unless a supported version of the host is installed. The host is not imported.

    Args:
        package: the host's distribution name, as pip knows it (`torchao`).
        minimum: the oldest supported version.
        below: the first version that was not tested.
        integration: the package that asks (`zaq_pt2e`).
        extra: the extra of zaq_plugin that installs the host (`pt2e`).

    Raises:
        ImportError: the host is missing, too old, or too new; the text says what to install.
    """
    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ImportError(
            f"{integration} needs {package} (>={minimum}, <{below}), which is not installed. "
            f"Install it with: pip install 'zaq_plugin[{extra}]'.",
            name=integration,
        ) from None
    check_version(installed, package, minimum, below, integration)


def require_torch(integration: str, minimum: str = TORCH_MINIMUM, below: str = TORCH_BELOW) -> None:
    """Raises unless the running torch is one that the integration was tested with.

    torch.ao is being removed from torch, and torchao follows torch closely, so the range is bounded
    on both sides. The version is the running torch's own, which also holds for source builds.

    Raises:
        ImportError: torch is too old or too new; the text says what to install.
    """
    import torch

    check_version(str(torch.__version__), "torch", minimum, below, integration)
