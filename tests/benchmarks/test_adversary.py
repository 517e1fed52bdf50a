"""ZAQ's adversary at length: equal steps, and what is written of them."""

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
import torch

from benchmarks.adversary.run import EPOCH, SOURCES, Bench, config_of, trained, untrained
from benchmarks.adversary.tables import curves, page
from zaq_timm.digits import load_digits_split

IMAGES_ALONE = {"source", "distillation", "generator"}


def job(source: str, seed: int = 0, epochs: int = 2) -> dict[str, Any]:
    return {"source": source, "bits": "2/4", "epochs": epochs, "lr": 0.01, "seed": seed}


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "default"])
def test_only_the_images_differ(source: str) -> None:
    mine, published = config_of(job(source)), config_of(job("published"))
    assert mine.steps == 2 * EPOCH
    differing = {name for name, part in vars(mine).items() if part != vars(published)[name]}
    assert differing <= IMAGES_ALONE


def test_training_is_repeatable() -> None:
    first, second = trained(epochs=1), trained(epochs=1)
    for (name, one), two in zip(
        first.state_dict().items(), second.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    assert sum(p.numel() for p in untrained().parameters() if p.dim() > 1) == 6152


@pytest.mark.slow
def test_the_network_knows_digits_and_training_on_real_ones_mends_its_student() -> None:
    bench = Bench()
    assert bench.top1(bench.model) > 95
    row = bench.run(job("real", epochs=1))
    assert row["end"] > row["curve"][0][1] + 5, "two-bit weights lose much at first"
    assert row["curve"][-1][0] == EPOCH
    assert len(load_digits_split().test_labels) == 599


def row(source: str, seed: int, ends: list[float]) -> dict[str, Any]:
    steps = [1, EPOCH, 2 * EPOCH]
    return {
        "job": job(source, seed),
        "float": 98.0,
        "curve": list(zip(steps, ends, strict=True)),
        "end": ends[-1],
        "handed_back": max(ends),
        "top1": max(ends) - 1,
        "restarts": [3] if source == "published" else [],
        "seconds": 10.0,
    }


def test_the_page_has_means_over_seeds_and_the_curves_a_line_a_source() -> None:
    rows = [
        row("published", 0, [70.0, 60.0, 30.0]),
        row("published", 1, [72.0, 50.0, 40.0]),
        row("leaves", 0, [71.0, 80.0, 85.0]),
    ]
    text = page(rows).markdown()
    begin = "| 2/4 | published | 0.01 | 2 | 600 | 2 "
    assert begin + "| 71.0 (70.0 to 72.0) | 35.0 (30.0 to 40.0) |" in text
    assert "| 2/4 | leaves | 0.01 | 2 | 600 | 1 | 71.0 | 85.0 | 85.0 | 84.0 | 0 | 10 |" in text
    drawn = curves(rows)
    ElementTree.fromstring(drawn)
    assert drawn.count("stroke-width: 2.2") == 2, "a line for each kind of images"
    assert ">published<" in drawn
    assert ">leaves<" in drawn
