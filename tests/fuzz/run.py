"""Many random networks along all routes: what is right, refused, and wrong.

    python -m tests.fuzz.run --checks 5000 --start 1000 --out benchmarks/results/fuzz.jsonl
    python -m tests.fuzz.run --again wrong --out benchmarks/results/fuzz.jsonl
    python -m tests.fuzz.run --minimise 17 --routes fx

Seeds below 1000 are for the suite. A check is a network along a route; `EVERY` spreads them over
the routes by what they cost.

Every verdict is a line of JSON, written the moment it exists; a second run goes on where the first
one ended. `FILE.md` beside it has a table of right, refused and wrong networks by route, and the
kinds of faults, most frequent first; of several verdicts on one check the last one counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
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
# One network in so many goes along a route.
EVERY = {
    "simulated": 1,
    "equalised": 4,
    "fx": 2,
    "fx_qat": 3,
    "nncf": 8,
    "onnx": 16,
    "pt2e": 20,
    "pt2e_qat": 30,
}
TOOLS = ("torch", "torchao", "nncf", "onnx", "onnxruntime")
Row = dict[str, Any]
Job = tuple[int, str]


def jobs_of(checks: int, start: int, routes: Sequence[str]) -> list[Job]:
    """So many pairs of seed and route, from a seed on, spread over the routes by cost."""
    jobs = [
        (seed, route)
        for seed in range(start, start + checks)
        for i, route in enumerate(EVERY)
        if route in routes and seed % EVERY[route] == i % EVERY[route]
    ]
    return jobs[:checks]


def rows_of(path: Path) -> list[Row]:
    """The last verdict on each check; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    rows: dict[Job, Row] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["seed"], row["route"]] = row
    return list(rows.values())


def work(queue: Iterable[Job], path: Path, again: str | None = None) -> None:
    """Judge what the file does not have yet, or has with the result ``again``; a line each."""
    done = {(row["seed"], row["route"]) for row in rows_of(path) if row["result"] != again}
    jobs = [job for job in queue if job not in done]
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
            text = ", ".join(f"{counts[r]} {r}" for r in RESULTS)
            progress.update(task, advance=1, description=text)


def table(rows: Sequence[Row]) -> str:
    """Counts by route, and kinds of faults, most frequent first, as Markdown."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    kinds: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        counts[row["route"]][row["result"]] += 1
        if row["result"] in ("wrong", "refused"):
            kinds[row["result"], row["route"], row["kind"]].append(row)
    seeds = [row["seed"] for row in rows] or [0]
    tools = ", ".join(f"{name} {version(name)}" for name in TOOLS)
    lines = [
        "# Random networks through every host",
        "",
        f"{len(rows)} checks of networks with seeds from {min(seeds)} to {max(seeds)}; {tools}.",
        "Right: see `tests/fuzz/check.py`. Refused: in this package's words, before calibration.",
        "No verdict: the host alone fails, or rounding every result drowns the network.",
        "",
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
        faults = [(k, v) for k, v in kinds.items() if k[0] == result]
        for (_, route, kind), these in sorted(faults, key=lambda item: -len(item[1])):
            seeds = ", ".join(str(r["seed"]) for r in these[:4])
            first = f"{these[0]['reason'][:160]} ({these[0]['network']})".replace("|", "/")
            lines.append(f"| {len(these)} | {route} | `{kind}` | {seeds} | {first} |")
    total = Counter(row["result"] for row in rows)
    lines += ["", "All: " + ", ".join(f"{total[r]} {r}" for r in RESULTS) + "."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checks", type=int, default=100, help="pairs of network and route")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES))
    parser.add_argument("--out", type=Path, default=Path("fuzz.jsonl"), help="lines of results")
    parser.add_argument("--again", choices=RESULTS, help="judge the rows of this result once more")
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
    queue = jobs_of(args.checks, args.start, args.routes)
    if args.again:
        queue = [
            (row["seed"], row["route"])
            for row in rows_of(args.out)
            if row["result"] == args.again and row["route"] in args.routes
        ]
    work(queue, args.out, args.again)
    args.out.with_suffix(".md").write_text(table(rows_of(args.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
