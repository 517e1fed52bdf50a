"""Layer records, audits and result rows."""

import json
import math

import pytest

from zaq_plugin.report import Audit, LayerRecord, ResultRow


def done(name="conv1", numel=100, **changes):
    values = {"spec": "PWLQ", "mac_bits": 4, "stored_bits": 5, "stored_bytes": 70} | changes
    return LayerRecord(name, "Conv2d", numel, True, **values)


def skipped(name="fc", reason="excluded by the override 'fc'", numel=50):
    return LayerRecord(name, "Linear", numel, False, reason)


def row(**changes):
    values = {
        "method": "PWLQ",
        "weight_mac_bits": 4,
        "weight_stored_bits": 5,
        "activation_mac_bits": 8,
        "activation_stored_bits": 8,
    }
    return ResultRow(**(values | changes))


@pytest.mark.parametrize("reason", [None, "", "  "])
def test_a_skipped_layer_must_say_why(reason):
    with pytest.raises(
        ValueError, match=r"Layer 'fc' \(Linear\) is recorded as not quantized without a reason"
    ):
        LayerRecord("fc", "Linear", 10, False, reason)


@pytest.mark.parametrize("missing", ["spec", "mac_bits", "stored_bits"])
def test_a_quantized_layer_must_give_both_widths_and_its_grid(missing):
    with pytest.raises(ValueError, match=rf"recorded as quantized without {missing}"):
        done(**{missing: None})


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="Layer 'conv1': numel must be >= 0, got -1"):
        done(numel=-1)


def test_audit_round_trips_through_json():
    audit = Audit([done(sqnr_db=math.inf, entropy_bits=4.2, kernel="int8"), skipped()])
    text = audit.to_json()
    assert Audit.from_json(text) == audit
    assert list(json.loads(text)) == ["records"]


def test_audit_refuses_unknown_keys_at_every_depth():
    with pytest.raises(ValueError, match="Audit has unknown key"):
        Audit.from_json('{"layers": []}')
    record = done().to_dict() | {"colour": 1}
    with pytest.raises(ValueError, match="Layer record 'conv1' has unknown key.* 'colour'"):
        Audit.from_dict({"records": [record]})
    with pytest.raises(ValueError, match="Layer record 'x' lacks kind, numel, quantized"):
        Audit.from_dict({"records": [{"name": "x"}]})


def test_a_layer_cannot_be_recorded_twice():
    with pytest.raises(ValueError, match="Layer 'conv1' is recorded twice"):
        Audit([done(), done()])
    audit = Audit([done()])
    with pytest.raises(ValueError, match="Layer 'conv1' is recorded twice"):
        audit.add(done())


def test_audit_splits_counts_and_finds():
    audit = Audit([done("a", 100), done("b", 300, mac_bits=8, stored_bits=8, stored_bytes=300)])
    audit.add(skipped())
    assert [r.name for r in audit.quantized] == ["a", "b"]
    assert [r.name for r in audit.skipped] == ["fc"]
    assert audit.mac_bits == (100 * 4 + 300 * 8) / 400
    assert audit.stored_bits == (100 * 5 + 300 * 8) / 400
    assert audit.stored_bytes == 70 + 300 + 4 * 50
    assert audit["fc"].reason == "excluded by the override 'fc'"
    assert [r.name for r in audit] == ["a", "b", "fc"]
    with pytest.raises(KeyError, match="no layer 'nope'"):
        audit["nope"]


def test_require_any_passes_a_quantized_model_on():
    audit = Audit([done(), skipped()])
    assert audit.require_any() is audit


def test_require_any_lists_the_reasons():
    audit = Audit([skipped(f"layer{i}", f"reason {i}") for i in range(10)])
    with pytest.raises(ValueError, match="nothing was quantized: all 10 layers") as caught:
        audit.require_any()
    text = str(caught.value)
    assert "layer0 (Linear): reason 0" in text
    assert "layer7 (Linear): reason 7" in text
    assert "... and 2 more" in text
    assert "overrides" in text


def test_require_any_tells_a_model_without_layers():
    with pytest.raises(ValueError, match="nothing was quantized: the model has no layer"):
        Audit().require_any()


def test_print_shows_every_layer_and_every_reason():
    text = str(Audit([done(), skipped()]))
    assert "conv1" in text
    assert "4 / 5" in text
    assert "not quantized: excluded by the override 'fc'" in text
    assert "1 of 2 layers quantized (66.7 % of the weights)" in text


def test_result_row_round_trips_and_refuses_unknown_keys():
    full = row(
        size_bytes=10,
        sqnr_db=math.inf,
        top1=91.25,
        agreement=99.0,
        seeds=3,
        spread=0.5,
        protocol={"first_last": 8},
        seconds=1.5,
    )
    assert ResultRow.from_dict(json.loads(json.dumps(full.to_dict()))) == full
    with pytest.raises(ValueError, match="Result row 'PWLQ' has unknown key.* 'topp1'"):
        ResultRow.from_dict(row().to_dict() | {"topp1": 3})
    with pytest.raises(ValueError, match="Result row 'x' lacks weight_mac_bits"):
        ResultRow.from_dict({"method": "x"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_stored_bits": 0}, r"weight_stored_bits must lie in 1\.\.64, got 0"),
        ({"activation_mac_bits": 65}, r"activation_mac_bits must lie in 1\.\.64, got 65"),
        ({"top1": 101.0}, r"top1 is a percentage in 0\.\.100, got 101"),
        ({"agreement": -1.0}, r"agreement is a percentage in 0\.\.100, got -1"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"seeds": 3, "top1": 90.0}, "mean over 3 seeds without its spread; pass spread="),
    ],
)
def test_result_row_refuses_nonsense(changes, message):
    with pytest.raises(ValueError, match=f"Row 'PWLQ'.*{message}"):
        row(**changes)
