"""Tables, plots and one page: how a run is told to people, and the records that it is told from.

`zaq_plugin.report.plots` draws.
"""

from zaq_plugin.report.headline import Headline
from zaq_plugin.report.images import image_grid
from zaq_plugin.report.manifest import Manifest, Stage, collect_versions
from zaq_plugin.report.markup import Figure
from zaq_plugin.report.page import render_page, write_page
from zaq_plugin.report.plots import split_curve, training_figures
from zaq_plugin.report.records import Audit, LayerRecord, ResultRow
from zaq_plugin.report.tables import (
    audit_markdown,
    audit_table,
    results_markdown,
    results_table,
)

__all__ = [
    "Audit",
    "Figure",
    "Headline",
    "LayerRecord",
    "Manifest",
    "ResultRow",
    "Stage",
    "audit_markdown",
    "audit_table",
    "collect_versions",
    "image_grid",
    "render_page",
    "results_markdown",
    "results_table",
    "split_curve",
    "training_figures",
    "write_page",
]
