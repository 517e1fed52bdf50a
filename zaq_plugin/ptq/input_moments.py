"""What a layer's weights multiply: its inputs as columns, and their second moments.

A convolution multiplies every patch of its input with the same weights; one patch, in the order of
a weight's elements, is one sample x of the products ``W x``. What a layer with a forward of its own
multiplies (its input with a padding that depends on its size, say) is found by watching it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zaq_plugin.layers import CONVOLUTIONS, has_own_forward, wide_dtype
from zaq_plugin.student.layer import own_class

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
        mine, theirs = ((w.data_ptr(), w.shape, w.stride(), w.dtype) for w in (self.weight, weight))
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


PATCHES = 1 << 15
"""Patches that are looked at, several times what one output channel of most layers has weights."""
CHUNK = 1 << 24
"""Elements of patches that are in memory at once."""
SQUARED = 512
"""Columns of a product that are computed at once."""


_KINDS: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, nn.Linear)


class NoProductError(ValueError):
    """A layer's forward gives its weight to no operator whose patches are known."""


def why_no_patches(layer: nn.Module) -> str:
    """Why a layer does not multiply patches of its input; empty if it does.

    One with a forward of its own is believed to: see `NoProductError`.
    """
    kind = own_class(layer)
    if not issubclass(kind, _KINDS):
        return f"{kind.__name__} does not multiply patches of its input"
    return ""


class InputMoments:
    """Second moments ``E[x x^T]`` of a layer's inputs, for each group of a convolution.

    Args:
        layer: Linear, or a convolution that is not transposed; see `why_no_patches`. If its forward
            is its own, a bare one (`bare_layer`) in the precision of its inputs: it is run.
        rng: CPU source of the patches that are looked at, where there are too many.
        per_sample: Patches of one sample at most, drawn with replacement.
    """

    def __init__(self, layer: nn.Module, rng: torch.Generator, per_sample: int = PATCHES) -> None:
        self.layer, self.rng, self.per_sample = layer, rng, per_sample
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, x: Tensor) -> None:
        """Take a batch of inputs into account.

        Raises:
            NoProductError: If the layer's own forward does not say what its weight multiplies.
        """
        x, kind = x.detach(), own_class(self.layer)
        base = next(k for k in _KINDS if issubclass(kind, k))
        products = _products(self.layer, x, base) if has_own_forward(kind) else []
        for product in products:
            if product.operator in CONVOLVES:
                self._add_patches(product, product.x)
            else:
                self._add_tokens(product.x)
        if not products and base is nn.Linear:
            self._add_tokens(x)
        elif not products:
            self._add_patches(self.layer, x)

    def _add_tokens(self, x: Tensor) -> None:
        tokens = x.reshape(1 if x.dim() == 1 else x.shape[0], -1, x.shape[-1])
        sizes = tokens.shape[1:2]
        self._take(self._choose(sizes.numel(), len(tokens), x.device), tokens, sizes, 1)

    def _add_patches(self, geometry: Any, x: Tensor) -> None:
        if x.dim() == len(geometry.kernel_size) + 1:  # asking the weight would quantize it
            x = x.unsqueeze(0)
        windows = _windows(geometry, x)
        sizes = windows.shape[2 : x.dim()]
        patches = windows.movedim(1, x.dim() - 1)  # (samples, *output size, channels, *kernel)
        chosen = self._choose(sizes.numel(), len(x), x.device)
        self._take(chosen, patches, sizes, int(geometry.groups))

    def mean(self) -> Tensor:
        """(groups, n, n) in float64; n is the number of one output channel's weights."""
        if self._sum is None:
            raise ValueError("InputMoments has seen no batch")
        return self._sum / self._count

    def _choose(self, available: int, samples: int, device: torch.device) -> Tensor:
        """(samples, patches) which patches of each sample."""
        if available <= self.per_sample:
            return torch.arange(available, device=device).expand(samples, -1)
        drawn = torch.randint(available, (samples, self.per_sample), generator=self.rng)
        return drawn.to(device)

    def _take(self, chosen: Tensor, patches: Tensor, sizes: torch.Size, groups: int) -> None:
        """Add the chosen patches of (samples, *sizes, *patch), a few samples at a time."""
        patch = patches.shape[1 + len(sizes) :].numel()
        at_once = max(1, CHUNK // max(1, chosen.shape[1] * patch))
        pairs = zip(patches.split(at_once), chosen.split(at_once), strict=True)
        for part, where in pairs:
            sample = torch.arange(len(part), device=part.device).unsqueeze(1)
            at: tuple[Any, ...] = torch.unravel_index(where, sizes)
            picked = part[(sample, *at)].flatten(0, 1)  # (chosen, channels, *kernel)
            columns = picked.reshape(len(picked), groups, -1).movedim(1, 0)
            if columns.dtype in (torch.float16, torch.bfloat16):
                columns = columns.float()
            moment = _squared(columns).to(wide_dtype(columns))
            self._sum = moment if self._sum is None else self._sum + moment
            self._count += columns.shape[1]


@torch.no_grad()
def _products(layer: nn.Module, x: Tensor, base: Any) -> list[Product]:
    """What a layer's own forward multiplies by the layer's weight, on one batch.

    Returns:
        Nothing if it writes in other operators what its base class does.

    Raises:
        NoProductError: If that is not known.
    """
    with WatchProducts() as watch:
        out = layer(x)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    known = (*CONVOLVES, F.linear)
    found = [p for p in watch.products if p.operator in known and p.multiplies_by(weight)]
    if not found and not _close(out, base.forward(layer, x)):
        raise NoProductError(
            f"the forward of {own_class(layer).__name__} gives its weight, as it stands, to no "
            f"convolution and no linear operator, and does not compute what {base.__name__} does"
        )
    return found


def _close(a: Any, b: Tensor) -> bool:
    """Whether two outputs are equal but for rounding."""
    if not isinstance(a, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    eps = torch.finfo(b.dtype).eps
    return bool((a - b).abs().amax() <= 100 * eps * b.abs().amax())


def _squared(columns: Tensor) -> Tensor:
    """``X^T X`` of (groups, rows, n); what mirrors the diagonal is computed once."""
    if columns.shape[2] < 2 * SQUARED:
        return columns.mT @ columns
    parts = columns.split(SQUARED, dim=2)
    out = columns.new_empty(columns.shape[0], columns.shape[2], columns.shape[2])
    for i, left in enumerate(parts):
        at = i * SQUARED
        rest = columns[:, :, at:]
        band = out[:, at : at + left.shape[2], at:]
        torch.matmul(left.mT, rest, out=band)
        out[:, at:, at : at + left.shape[2]] = band.mT
    return out


def _windows(layer: Any, x: Tensor) -> Tensor:
    """A view (samples, channels, *output size, *kernel) of all patches of a convolution."""
    rank = x.dim() - 2
    if isinstance(layer.padding, str):
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        same = layer.padding == "same"
        pads = [(r // 2, r - r // 2) if same else (0, 0) for r in reach]
    else:
        pads = [(p, p) for p in layer.padding]
    flat = [p for pair in reversed(pads) for p in pair]
    if any(flat):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, flat, mode=mode)
    for i in range(rank):
        reach_i = layer.dilation[i] * (layer.kernel_size[i] - 1) + 1
        x = x.unfold(2 + i, reach_i, layer.stride[i])
    every: tuple[Any, ...] = tuple(slice(None, None, d) for d in layer.dilation)
    return x[(..., *every)]
