"""One model's page within the zoo's page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from zaq_plugin.report import columns as col
from zaq_plugin.report.markup import Figure, cards, esc, pairs
from zaq_plugin.report.page import audit_html
from zaq_plugin.report.plots import split_curve
from zaq_plugin.report.records import Audit
from zaq_timm.zoo.errors import DONE
from zaq_timm.zoo.figures import (
    frontier_line,
    level_stems,
    sensitivity_bars,
    step_lines,
)

PICTURES = "Images nobody took"


def model_section(
    row: Mapping[str, Any],
    details: Mapping[str, Any],
    manifest: Mapping[str, Any],
    pictures: bytes,
    before: str | None,
    after: str | None,
) -> str:
    """A model's page as a section, shown when the address names it.

    Args:
        row, details, manifest, pictures: see `zaq_timm.zoo.page.ModelEntry`.
        before, after: keys of its neighbours.
    """
    key = str(row["key"])
    crumbs = ['<a href="#overview">← All models</a>']
    crumbs += [f'<a href="#m-{esc(before)}">previous: {esc(before)}</a>'] if before else []
    crumbs += [f'<a href="#m-{esc(after)}">next: {esc(after)}</a>'] if after else []
    parts = [f'<div class="crumbs">{"".join(crumbs)}</div><h2>{esc(key)}</h2>']
    if row["status"] == DONE:
        parts.append(f'<p class="lead above">{esc(_summary(row))}</p>{_cards(row)}')
    else:
        why = f"{row['status']}: {row.get('reason') or 'no reason was recorded'}"
        parts.append(f'<p><span class="why">{esc(why)}</span></p>')
    figures = _figures(details, pictures, row)
    if figures:
        drawn = "".join(
            one.to_html(f"{key}-{i}-", "pictures" if one.title == PICTURES else "")
            for i, one in enumerate(figures)
        )
        parts.append(f'<h3 class="part">Pictures</h3><div class="figures">{drawn}</div>')
    if details.get("layers"):
        audit = Audit.from_dict({"records": details["layers"]})
        parts.append(f'<h3 class="part">Layers</h3>{audit_html(audit, "Layers of " + key)}')
    parts.append(_facts(row, manifest))
    return f'<section class="model" id="m-{esc(key)}">{"".join(parts)}</section>'


def _summary(row: Mapping[str, Any]) -> str:
    notes = "".join(f" {note}." for note in row.get("notes", []))
    return (
        f"{row['quantized']} of {row['layers']} layers quantized and converted by {row['host']}; "
        f"weights: {row.get('weights_from', 'unknown')}; ranges from "
        f"{row.get('calibration', 'synthetic images')}.{notes}"
    )


def _cards(row: Mapping[str, Any]) -> str:
    told = [
        (
            "Weight bits, MAC / stored",
            col.bit_pair(row["mac_bits"], row["stored_bits"]),
            f"activations {col.bits(row.get('activation_bits'))} bits",
        ),
        (
            "Size",
            col.size(row["size_bytes"]),
            f"float: {col.size(row['float_bytes'])}",
        ),
    ]
    if row.get("top1") is not None:
        note = f"float {row['float_top1']:.2f} %, {row['eval_images']} images"
        told.append(("Top-1", f"{row['top1']:.2f} %", note))
        told.append(("Agreement", f"{row['eval_agreement']:.2f} %", "on the same images"))
    notes = [f"of {row['agreement_images']} images"] if row.get("agreement_images") else []
    if row.get("divergence") is not None:
        notes.append(f"divergence {row['divergence']:.2g} nats")
    told.append(("Agreement, synthetic", f"{row['agreement']:.1f} %", ", ".join(notes)))
    return cards(told)


def _figures(details: Mapping[str, Any], pictures: bytes, row: Mapping[str, Any]) -> list[Figure]:
    figures = []
    sensitivities: Sequence[Mapping[str, Any]] = details.get("sensitivities") or []
    if sensitivities:
        bars = sensitivity_bars([(s["layer"], s["divergence"]) for s in sensitivities])
        figures.append(
            Figure(
                "Which layers mind",
                bars,
                "Divergence from the float model, in nats, when that layer alone is quantized at "
                "its final width.",
            )
        )
    if details.get("frontier"):
        points = [(p["stored_bits"], p["divergence"], p["chosen"]) for p in details["frontier"]]
        figures.append(
            Figure(
                "Widths by budget",
                frontier_line(points),
                "The least summed divergence at each mean of stored bits; the dot is what the "
                "budget chose.",
            )
        )
    figures += [
        Figure(
            f"{one['layer']}, channel {one['channel']}",
            level_stems(one["levels"], one["counts"], one["spec"]),
            f"{one['spec']}: its levels (marks), and how many weights sit on each (bars).",
        )
        for one in details.get("levels") or []
    ]
    figures += _training(details.get("curve") or [])
    if pictures:
        picture = f"data:image/png;base64,{base64.b64encode(pictures).decode()}"
        what = str(row.get("calibration", "synthetic images"))
        figures.append(Figure(PICTURES, picture, f"{what[:1].upper()}{what[1:]}."))
    return figures


def _training(curve: Sequence[Mapping[str, float]]) -> list[Figure]:
    """Divergence and λ over the steps of zero-shot fine-tuning."""
    steps, terms, layers = split_curve(curve)
    figures = []
    if "divergence" in terms:
        figures.append(
            Figure(
                "Zero-shot fine-tuning",
                step_lines(steps, {"divergence": terms["divergence"]}, "divergence (nats)"),
                "From the float model, on synthetic images that nothing trains on; the best state "
                "is kept, the untrained one included.",
            )
        )
    if layers:
        figures.append(
            Figure(
                "Where student and teacher differ",
                step_lines(steps, layers, "λ"),
                "Weight λ by layer: the largest where the two networks' channel relation maps are "
                "furthest apart.",
            )
        )
    return figures


def _facts(row: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    measured = row.get("measured") or {}
    facts: dict[str, Any] = {}
    if row.get("input"):
        facts["images"] = row["input"]
        facts["batch"] = row.get("batch")
    if row.get("batch_halved_from"):
        facts["batch"] = f"{row.get('batch')}, halved from {row['batch_halved_from']}"
    if measured.get("seconds") is not None:
        facts["time"] = col.seconds_text(measured["seconds"])
    if measured.get("peak_bytes"):
        facts["peak memory"] = col.size(measured["peak_bytes"])
    facts["attempts"] = measured.get("attempts", 1)
    if row.get("exported"):
        facts["exported"] = f"{row['exported']['file']}, {col.size(row['exported']['bytes'])}"
    blocks = f"<div><h3>Run</h3>{pairs(facts)}</div>"
    if manifest.get("versions"):
        blocks += f"<div><h3>Versions</h3>{pairs(manifest['versions'])}</div>"
    out = f'<h3 class="part">Facts</h3><div class="facts">{blocks}</div>'
    if manifest:
        brief = {k: v for k, v in manifest.items() if k not in ("layers", "audits")}
        text = json.dumps(brief, indent=1, ensure_ascii=False)
        out += (
            "<details><summary>Manifest <span>— as JSON, layers above</span></summary>"
            f"<pre>{esc(text)}</pre></details>"
        )
    return out
