"""The smallest network that fails as a given one does."""

from __future__ import annotations

from dataclasses import replace

from tests.fuzz.base import UnfitError
from tests.fuzz.check import Verdict, check
from tests.fuzz.grammar import Recipe, build


def minimise(recipe: Recipe, route: str) -> tuple[Recipe, Verdict]:
    """Drop blocks, entry and exit while the network is wrong in the same way.

    Raises:
        ValueError: the network is not wrong in this route.
    """
    recipe = build(recipe)[1]
    verdict = check(recipe, route)
    if verdict.result != "wrong":
        raise ValueError(
            f"network {recipe.seed} is {verdict.result} in route {route}; "
            "only wrong ones get smaller"
        )
    shrunk = True
    while shrunk:
        shrunk = False
        for candidate in _smaller(recipe):
            try:
                trial = check(candidate, route)
            except UnfitError:
                continue
            if trial.result == "wrong" and _way(trial) == _way(verdict):
                recipe, verdict, shrunk = build(candidate)[1], trial, True
                break
    return recipe, verdict


def _way(verdict: Verdict) -> str:
    """The kind of fault, without the line of code."""
    return verdict.kind.rpartition(":")[0] if verdict.kind.count(":") > 2 else verdict.kind


def _smaller(recipe: Recipe) -> list[Recipe]:
    count = len(recipe.steps)
    candidates = []
    if count > 2:  # halves first
        candidates += [
            replace(recipe, steps=recipe.steps[: count // 2]),
            replace(recipe, steps=recipe.steps[count // 2 :]),
        ]
    candidates += [
        replace(recipe, steps=recipe.steps[:i] + recipe.steps[i + 1 :])
        for i in reversed(range(count))
        if count > 1
    ]
    if recipe.exit != "plain":
        candidates.append(replace(recipe, exit="plain"))
    if recipe.entry != "plain":
        candidates.append(replace(recipe, entry="plain"))
    return candidates
