"""An exported graph made ready for quantization, before the host touches it."""

from __future__ import annotations

from torch.fx import GraphModule

from zaq_pt2e._compat import replace_fusion
from zaq_pt2e.foreign import NotForNNCF
from zaq_pt2e.fusion import fuse
from zaq_pt2e.rewrites import rewrite


def make_ready(model: GraphModule, *, training: bool = False) -> None:
    """Rewrite an exported graph, and fold its BatchNorms; its function stays the same.

    Args:
        model: ``ExportedProgram.module()``; changed in place. Once more changes nothing.
        training: Leave BatchNorms to the host's patterns for training, where it has them.

    Raises:
        ValueError: layers run under an active ``torch.autocast``.
    """
    rewrite(model)
    fuse(model, training=training)


# prepare_pt2e folds BatchNorm before it asks a quantizer anything.
replace_fusion(NotForNNCF, make_ready)
