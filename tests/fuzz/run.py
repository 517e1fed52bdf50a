"""Many random networks along all routes: what is right, refused, and wrong.

    python -m tests.fuzz.run --count 5000 --out fuzz.jsonl [--routes fx pt2e] [--start 0]
    python -m tests.fuzz.run --minimise 17 --routes fx

Every verdict is a line of JSON, written the moment it exists; a second run goes on where the first
one ended. `FILE.md` beside it has a table of right, refused and wrong networks by route, and the
kinds of faults, most frequent first. The first seed of each kind is made smaller with
``--smallest``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.fuzz.base import UnfitError
from tests.fuzz.check import Verdict, check
from tests.fuzz.grammar import build, recipe_of
from tests.fuzz.minimise import minimise
from tests.fuzz.routes import ROUTES

RESULTS = ("right", "refused", "wrong", "none")
Row = dict[str, Any]


def rows_of(path: Path) -> list[Row]:
    """The rows of a file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def work(seeds: Iterable[int], routes: Sequence[str], path: Path) -> None:
    """Judge the networks that the file does not have yet, a line each."""
    done = {(row["seed"], row["route"]) for row in rows_of(path)}
    jobs = [(s, r) for s in seeds for r in routes if (s, r) not in done]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    counts: Counter[str] = Counter()
    with path.open("a") as file, Progress(*columns) as progress:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            file.write("\n")
        task = progress.add_task("networks", total=len(jobs))
        for seed, route in jobs:
            try:
                verdict = check(recipe_of(seed), route)
            except UnfitError:
                verdict = Verdict(seed, route, "none", "no network", "no layer fits", {}, "")
            file.write(json.dumps(verdict.to_json()) + "\n")
            file.flush()
            counts[verdict.result] += 1
            told = ", ".join(f"{counts[r]} {r}" for r in RESULTS)
            progress.update(task, advance=1, description=told)


def table(rows: Sequence[Row]) -> str:
    """Counts by route, and kinds of faults, most frequent first, as Markdown."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    kinds: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        counts[row["route"]][row["result"]] += 1
        if row["result"] in ("wrong", "refused"):
            kinds[row["result"], row["route"], row["kind"]].append(row)
    lines = [
        "| route | networks | right | refused | wrong | no verdict |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for route in [r for r in ROUTES if r in counts]:
        c = counts[route]
        cells = [str(c.total()), *(str(c[r]) for r in RESULTS)]
        lines.append(f"| {route} | " + " | ".join(cells) + " |")
    for result, title in (("wrong", "Faults"), ("refused", "Refusals")):
        lines += [
            "",
            f"## {title}",
            "",
            "| networks | route | kind | seeds | first |",
            "|---:|---|---|---|---|",
        ]
        found = [(k, v) for k, v in kinds.items() if k[0] == result]
        for (_, route, kind), these in sorted(found, key=lambda item: -len(item[1])):
            seeds = ", ".join(str(r["seed"]) for r in these[:4])
            first = f"{these[0]['reason'][:160]} ({these[0]['network']})".replace("|", "/")
            lines.append(f"| {len(these)} | {route} | `{kind}` | {seeds} | {first} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100, help="networks")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES))
    parser.add_argument("--out", type=Path, default=Path("fuzz.jsonl"), help="lines of results")
    parser.add_argument("--minimise", type=int, metavar="SEED", help="print the smallest network")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.minimise is not None:
        for route in args.routes:
            try:
                recipe, verdict = minimise(recipe_of(args.minimise), route)
            except ValueError as error:
                print(error)
                continue
            print(f"{route}: {verdict.kind}\n{verdict.reason}\n{recipe}\n{recipe.steps}")
            print(build(recipe)[0].steps)
        return 0
    work(range(args.start, args.start + args.count), args.routes, args.out)
    args.out.with_suffix(".md").write_text(table(rows_of(args.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
