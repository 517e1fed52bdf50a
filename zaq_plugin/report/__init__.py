"""Tables, plots and one page: how a run is told to people, and the records that it is told from."""

from zaq_plugin.report.manifest import Manifest, Stage, collect_versions
from zaq_plugin.report.records import Audit, LayerRecord, ResultRow

__all__ = ["Audit", "LayerRecord", "Manifest", "ResultRow", "Stage", "collect_versions"]
