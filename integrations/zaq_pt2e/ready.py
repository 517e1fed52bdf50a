"""An exported graph made ready for quantization, before the host touches it."""

from __future__ import annotations

import copy
from typing import Any, NoReturn

from torch.fx import GraphModule

from zaq_plugin.student.hand_over import Held
from zaq_pt2e._compat import replace_fusion
from zaq_pt2e.fusion import fuse
from zaq_pt2e.rewrites import rewrite

# ---- Whose graphs are made ready, and the one caller that is refused -----------------------------


class NotForNNCF:
    """A quantizer that NNCF's ``quantize_pt2e`` must not take.

    NNCF reads integer type, scheme and narrow range from a torchao quantizer and ignores its
    observers: PWLQ weights would silently become uniform int8. It asks a quantizer that has this
    method for a setup before it reads anything else.
    """

    def get_nncf_quantization_setup(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse.

        Raises:
            ValueError: always, with the ways that work.
        """
        raise ValueError(
            f"NNCF's quantize_pt2e ignores the observers of {type(self).__name__} and would make "
            "the weights uniform int8, not PWLQ. Use torchao's prepare_pt2e and convert_pt2e with "
            "this quantizer, or zaq_nncf.quantize(model, data, PWLQSpec(...)) on the module before "
            "torch.export."
        )


# ---- Making ready --------------------------------------------------------------------------------

FLOAT, VERSIONS = "zaq_float", "zaq_versions"


def make_ready(model: GraphModule, *, training: bool = False) -> None:
    """Rewrite an exported graph, and fold its BatchNorms; its function stays the same.

    Args:
        model: ``ExportedProgram.module()``; changed in place. Once more changes nothing.
        training: Leave BatchNorms to the host's patterns for training, where it has them.

    Raises:
        ValueError: layers run under an active ``torch.autocast``.
    """
    if FLOAT not in model.meta:
        model.meta[FLOAT] = Held(_as_it_is(model))
    rewrite(model)
    fuse(model, training=training)


def note_prepared(prepared: GraphModule) -> None:
    """Remember the state of the weights: a trained model is not to be taken for a prepared one."""
    prepared.meta[VERSIONS] = Held([(p, p._version) for p in prepared.parameters()])


def float_graph(prepared: GraphModule) -> GraphModule | None:
    """The graph that a prepared model was made of; None if that is not known, or weights moved."""
    original, noted = (prepared.meta.get(key) for key in (FLOAT, VERSIONS))
    if not isinstance(original, Held) or not isinstance(noted, Held) or noted.value is None:
        return None
    versions = {id(parameter): version for parameter, version in noted.value}
    still = all(versions.get(id(p)) == p._version for p in prepared.parameters())
    graph = original.value if still else None
    return graph if isinstance(graph, GraphModule) else None


def forget_float_graph(prepared: GraphModule) -> None:
    """Let its tensors go."""
    for key in (FLOAT, VERSIONS):
        prepared.meta.pop(key, None)


def _as_it_is(model: GraphModule) -> GraphModule:
    """A copy with the very same tensors: rewriting gives a graph new ones."""
    shared = [*model.parameters(), *model.buffers()]
    graph: GraphModule = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    return graph


# prepare_pt2e folds BatchNorm before it asks a quantizer anything.
replace_fusion(NotForNNCF, make_ready)
