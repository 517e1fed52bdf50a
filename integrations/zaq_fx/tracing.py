"""The graph of a float model, and small questions about modules by name."""

from __future__ import annotations

from torch import fx, nn

from zaq_fx.kept import KeptFloat


class Tracer(fx.Tracer):
    """torch.fx's tracer; parameters stay attributes of the modules that own them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """As torch.fx; a layer that is kept float is a leaf, too."""
        return isinstance(m, KeptFloat) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """The model as a GraphModule that shares its modules; a GraphModule is returned as it is.

    Raises:
        ValueError: the model cannot be traced.
    """
    if isinstance(model, fx.GraphModule):
        return model
    try:
        graph = Tracer().trace(model)
    except Exception as error:
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__} ({error}). FX quantization needs a "
            "traceable model; zaq_pt2e takes models with control flow."
        ) from error
    return fx.GraphModule(model, graph, type(model).__name__)


def exists(root: nn.Module, path: str) -> bool:
    """Whether a module has a submodule of this name."""
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


def free_name(root: nn.Module, stem: str) -> str:
    """The stem, or the stem with the first number that makes it a new submodule's name."""
    name, number = stem, 0
    while exists(root, name) or hasattr(root, name):
        number += 1
        name = f"{stem}_{number}"
    return name
