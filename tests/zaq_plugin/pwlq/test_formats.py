"""What holds of every format, and that nothing asks which one a format is."""

import re
from pathlib import Path

import pytest
import torch

from zaq_plugin.pwlq import Format, fake_quantize, quantize, spec_from_name
from zaq_plugin.pwlq.names import FORMATS, in_words, split_name
from zaq_plugin.pwlq.registry import format_named, spec_from_json

ROOT = Path(__file__).parents[3]
TEXTS = [
    f"{name}{bits}"
    for line in FORMATS.values()
    for name, facts in line.names.items()
    for bits in range(facts.low, facts.high + 1)
]


def test_no_source_asks_which_format_a_format_is() -> None:
    classes = {line.where.partition(":")[2]: line.where for line in FORMATS.values()}
    ask = re.compile(rf"isinstance\([^()]*,[^()]*\b({'|'.join(classes)})\b")
    assert ask.search("if isinstance(spec, PWLQSpec | UniformSpec):")
    asking = []
    for folder in ("zaq_plugin", "integrations", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            asking += [
                f"{module}: {found[0]}"
                for found in ask.finditer(path.read_text(encoding="utf-8"))
                if classes[found[1]].partition(":")[0] != module
            ]
    assert asking == []


@pytest.mark.parametrize("text", TEXTS)
def test_a_name_is_its_format_in_words_in_json_and_in_a_budget(text: str) -> None:
    spec = spec_from_name(text)
    assert spec.label.startswith(in_words(text) + " (")
    assert spec_from_json(spec.to_json()) == spec
    assert spec.family in FORMATS[spec.kind].names
    widths = [width.stored_bits for width in spec.widths()]
    assert widths == sorted(set(widths))
    assert spec.stored_bits in widths
    low, high = spec.stored_range
    assert spec.with_stored_bits(low).stored_bits == low
    assert spec.with_stored_bits(high).stored_bits == high


@pytest.mark.parametrize("text", TEXTS)
def test_codes_levels_and_gradients_fit_together(text: str) -> None:
    spec = spec_from_name(text)
    w = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    q = quantize(w, spec)
    assert q.edges is not None
    assert q.codebook.shape == (4, spec.num_levels)
    assert int(q.codes.max()) < spec.num_levels <= 2**spec.stored_bits
    assert int(q.codebook.abs().max()) <= spec.largest_level
    assert torch.equal(fake_quantize(w, spec, edges=q.edges), q.dequantize())
    assert q.stored_bytes == -(-w.numel() * spec.stored_bits // 8) + spec.table_bytes(4)
    low, high = spec.limits(q.edges)
    made = q.dequantize().flatten(1)
    step = q.scale.unsqueeze(1)
    assert bool((made >= low - step).all())
    assert bool((made <= high + step).all())
    ideal = spec.signed_levels(q.edges)
    assert ideal.shape == q.codebook.shape


def test_a_subclass_says_seven_things() -> None:
    assert Format.__abstractmethods__ == {
        "num_levels", "mac_bits", "label", "solve", "levels_at", "signed_levels", "of_bits",
    }  # fmt: skip


def test_names_that_do_not_exist_are_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="weights must be pwlq2 to pwlq6, uniform2 to uniform8"):
        split_name("pwlq7")
    with pytest.raises(ValueError, match="a format is one of 'pwlq', 'uniform', 'minmax', 'pot'"):
        format_named("posit")
