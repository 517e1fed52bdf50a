"""The verdict on a network and a route: right, refused, wrong, or none.

Right: with its quantizers off the model is the float model (80 dB), and quantized it is at most
`MARGIN` dB worse than the same network quantized by `reference_sqnr`, which rounds every result, so
that no route rounds more often. Refused: this package's own ValueError or TypeError, before
calibration. Wrong: all else. No verdict where the reference itself drowns in noise (`CHAOS`), or
where the host alone, without this package, fails.
"""

from __future__ import annotations

import copy
import math
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.figures import leaves, reference_sqnr, sqnr
from tests.fuzz.grammar import Recipe, build, inputs_of
from tests.fuzz.routes import BITS, ROUTES, HostError, Inputs, Run

FLOAT_DB, SAME_DB = 80.0, 50.0
# The margin, one bit, is for other ranges and other places of rounding.
MARGIN, ENOUGH = 6.0, 30.0
CHAOS = 6.0
PROOF = "check=False goes on all the same"
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Verdict:
    """What became of a network in a route.

    Attributes:
        seed: The network's, or that of the network that it was made from.
        route: Name of the route.
        result: "right", "refused", "wrong" or "none".
        kind: The same for faults of one kind.
        reason: In words.
        figures: SQNR in dB of the models that were made, and the bound.
        network: The description.
    """

    seed: int
    route: str
    result: str
    kind: str
    reason: str
    figures: dict[str, float]
    network: str

    def to_json(self) -> dict[str, Any]:
        """A mapping for a line of JSON."""
        return asdict(self)


def check(recipe: Recipe, route: str) -> Verdict:
    """Take a network along a route.

    Raises:
        UnfitError: the recipe makes no network.
    """
    model, recipe = build(recipe)
    batches = inputs_of(recipe)
    figures: dict[str, float] = {}

    def verdict(result: str, kind: str, reason: str) -> Verdict:
        text = " ".join(reason.split())[:400]
        return Verdict(recipe.seed, route, result, kind, text, figures, str(recipe))

    test = tuple(torch.cat(xs) for xs in zip(*batches, strict=True))
    with torch.no_grad():
        right = copy.deepcopy(model)(*_copies(test))
    if not all(torch.isfinite(x).all() for x in leaves(right)):
        return verdict("none", "float network", "the float network's output is not finite")
    bits = 8 if route in ("simulated", "nncf", "onnx") else 7
    reference = reference_sqnr(model, test, BITS[recipe.spec], bits)
    figures["reference"] = reference
    run = Run(recipe, model, batches)
    before, copies = copy.deepcopy(model.state_dict()), [_copies(b) for b in batches]
    try:
        with quiet():
            models = ROUTES[route](run)
            previous: Any = right
            for one in models:
                run.stage = one.name
                with torch.no_grad():
                    got = one.call(*_copies(test))
                figures[one.name] = sqnr(previous if one.kind == "same" else right, got)
                bound = _bound(one.kind, reference)
                if figures[one.name] < bound:
                    figures["bound"] = bound
                    return verdict(
                        "wrong",
                        f"numbers: {one.name}",
                        f"{one.name}: {figures[one.name]} dB, expected {bound:.1f}",
                    )
                previous = got
    except HostError as error:
        return verdict("none", "host", str(error))
    except Exception as error:
        return verdict(*_judge(error, run))
    finally:
        if torch.is_grad_enabled() is False:
            torch.set_grad_enabled(True)
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    if changed or model.training:
        return verdict("wrong", "model changed", f"the user's model changed: {changed[:4]}")
    if not all(
        torch.equal(a, b)
        for x, y in zip(batches, copies, strict=True)
        for a, b in zip(x, y, strict=True)
    ):
        return verdict("wrong", "batches changed", "the user's batches changed")
    if reference < CHAOS:
        return verdict("none", "chaos", f"the reference itself has {reference} dB")
    return verdict("right", "", "")


def _bound(kind: str, reference: float) -> float:
    if kind == "float":
        return FLOAT_DB
    if kind == "same":
        return SAME_DB
    return -math.inf if reference < CHAOS else min(reference - MARGIN, ENOUGH)


def _copies(inputs: Inputs) -> Inputs:
    return tuple(x.clone() for x in inputs)


def _judge(error: Exception, run: Run) -> tuple[str, str, str]:
    """A refusal in this package's words before calibration, or a fault."""
    frames = traceback.extract_tb(error.__traceback__)
    inner = frames[-1]
    own = [f for f in frames if _is_ours(f.filename)]
    where = f"{_short(own[-1].filename)}:{own[-1].name}:{own[-1].lineno}" if own else "host alone"
    reason = f"{run.stage}: {type(error).__name__}: {error}"
    if PROOF in str(error):  # a wrong model that the package itself found, or a false alarm
        return "wrong", f"proof: {run.stage}", reason
    if isinstance(error, ValueError | TypeError) and _is_ours(inner.filename):
        if not run.calibrated:
            return "refused", f"{run.stage}: {where}", reason
        return "wrong", f"late refusal: {run.stage}: {where}", reason
    return "wrong", f"{type(error).__name__}: {run.stage}: {where}", reason


def _is_ours(filename: str) -> bool:
    path = Path(filename)
    return any(part.startswith("zaq_") for part in path.parts)


def _short(filename: str) -> str:
    parts = Path(filename).parts
    return "/".join(parts[-2:])


@contextmanager
def quiet() -> Iterator[None]:
    """Hosts' warnings and progress are no finding."""
    import logging

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
