"""Refusing the one caller of torchao quantizers that would ignore what ours say."""

from __future__ import annotations

from typing import Any, NoReturn


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
