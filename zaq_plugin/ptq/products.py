"""What a layer gives to the operators that multiply, found by watching a call of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

CONVOLVES = (F.conv1d, F.conv2d, F.conv3d)
_MULTIPLIES = (*CONVOLVES, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear)
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class Product:
    """One call of a convolution or linear operator.

    Attributes:
        operator: Of ``torch.nn.functional``.
        x: What it multiplies.
        weight: What it multiplies by.
        bias: What it adds, or None.
        kernel_size, stride, padding, dilation, groups: Of a convolution that is not transposed, as
            its layer has them.
    """

    operator: Any
    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"

    def multiplies_by(self, weight: Tensor) -> bool:
        """Whether its weight is that tensor itself: the same memory, read in the same way."""
        mine, theirs = (
            (w.data_ptr(), w.shape, w.stride(), w.dtype) for w in (self.weight, weight)
        )
        return mine == theirs


class WatchProducts(TorchFunctionMode):
    """Notes every product that is computed within it, in order.

    Attributes:
        products: What was noted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note a call, and let it through."""
        kwargs = kwargs or {}
        if func in _MULTIPLIES:
            self.products.append(_product(func, args, kwargs))
        return func(*args, **kwargs)


def _product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Product:
    given = dict(zip(_NAMES, args, strict=False)) | kwargs
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    if func not in CONVOLVES:
        return Product(func, x, weight, bias)
    kernel = tuple(weight.shape[2:])
    options: dict[str, Any] = {}
    for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = given.get(name, default)
        if not isinstance(value, str):
            value = (value,) if isinstance(value, int) else tuple(value)
            value = value * len(kernel) if len(value) == 1 else value
        options[name] = value
    return Product(func, x, weight, bias, kernel, groups=given.get("groups", 1), **options)
