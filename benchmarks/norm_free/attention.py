"""What attention looks like while a model runs, whatever library wrote the model.

Every call of torch's ``scaled_dot_product_attention`` is seen, by a mode that stands around the
forward pass: timm's, torchvision's and Transformers' models call it by default. Models that
multiply and take a softmax by themselves have no such call, and nothing is seen of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CALLS = (
    torch.nn.functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)


@dataclass(frozen=True)
class Attention:
    """One call.

    Attributes:
        query, key: (B, heads, T, d) and (B, heads, S, d).
        output: (B, heads, T, v).
        scale: What the products are multiplied by.
    """

    query: Tensor
    key: Tensor
    output: Tensor
    scale: float

    @property
    def weights(self) -> Tensor:
        """The attention maps, rows of which sum to one, (B, heads, T, S); masks are not applied."""
        return (self.query @ self.key.mT * self.scale).softmax(-1)

    @property
    def tokens(self) -> Tensor:
        """The output with its heads side by side, (B, T, heads * v)."""
        return self.output.transpose(1, 2).flatten(2)


class _Mode(TorchFunctionMode):
    def __init__(self, seen: Callable[[Attention], None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in _CALLS:
            named = dict(zip(("query", "key"), args, strict=False)) | kwargs
            query, key = named["query"], named["key"]
            if query.dim() == 4 and query.shape[1] == key.shape[1]:
                scale = kwargs.get("scale") or 1 / math.sqrt(query.shape[-1])
                self.seen(Attention(query, key, out, scale))
        return out


@contextmanager
def watching_attention() -> Iterator[list[Attention]]:
    """A list of all calls of attention inside, in their order."""
    calls: list[Attention] = []
    with _Mode(calls.append):
        yield calls
