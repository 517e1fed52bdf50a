"""How much memory the tensors take that a computation has made and still holds."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside ``with``, remembers every tensor that is made, until nobody holds it any more."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call an operator, and remember what it made."""
        out = func(*args, **(kwargs or {}))
        self._made += [weakref.ref(x) for x in tree_leaves(out) if isinstance(x, Tensor)]
        return out

    def now(self) -> int:
        """Bytes at this moment; tensors that share their memory count once."""
        alive = [(ref, x) for ref in self._made if (x := ref()) is not None]
        self._made = [ref for ref, _ in alive]
        storages = {s.data_ptr(): s.nbytes() for s in (x.untyped_storage() for _, x in alive)}
        return sum(storages.values())
