"""`register` changes ``nncf.quantize`` and nothing else, and can be undone."""

import threading
from collections.abc import Callable

import nncf
import pytest
import torch
from nncf.quantization.algorithms.min_max.torch_backend import PTMinMaxAlgoBackend
from torch import Tensor, nn

import zaq_nncf
from zaq_nncf import _compat
from zaq_nncf.activation_quantizers import ActivationQuantizer
from zaq_nncf.weight_quantizer import PWLQWeightQuantizer
from zaq_plugin import PWLQSpec

FAST = PWLQSpec(bits=4, policy="gaussian")
Hooks = Callable[[nn.Module], dict[str, nn.Module]]


@pytest.fixture(autouse=True)
def undone() -> "object":
    before = {name: PTMinMaxAlgoBackend.__dict__[name] for name in _compat.PLACING}
    yield
    zaq_nncf.unregister()
    for name, method in before.items():
        assert PTMinMaxAlgoBackend.__dict__[name] is method


def plain(net: nn.Module, images: Tensor) -> nn.Module:
    return nncf.quantize(zaq_nncf.prepare_model(net), nncf.Dataset([images]))


def ours(hooks: dict[str, nn.Module]) -> bool:
    return any(isinstance(m, PWLQWeightQuantizer | ActivationQuantizer) for m in hooks.values())


def bits(hooks: dict[str, nn.Module]) -> set[int]:
    return {m.spec.bits for m in hooks.values() if isinstance(m, PWLQWeightQuantizer)}


def test_registering_is_explicit_idempotent_and_undone(
    net: nn.Module, images: Tensor, hooks: Hooks
) -> None:
    assert not zaq_nncf.is_registered()
    zaq_nncf.register(FAST)
    zaq_nncf.register(PWLQSpec(bits=3, policy="gaussian"))  # replaces the settings
    assert zaq_nncf.is_registered()
    assert bits(hooks(plain(net, images))) == {3}
    zaq_nncf.unregister()
    zaq_nncf.unregister()
    assert not zaq_nncf.is_registered()
    assert not ours(hooks(plain(net, images)))


def test_a_context_ends_as_it_began(net: nn.Module, images: Tensor, hooks: Hooks) -> None:
    with zaq_nncf.register(FAST):
        with zaq_nncf.register(PWLQSpec(bits=3, policy="gaussian")):
            assert bits(hooks(plain(net, images))) == {3}
        assert bits(hooks(plain(net, images))) == {4}
    assert not zaq_nncf.is_registered()
    with pytest.raises(RuntimeError, match="on purpose"), zaq_nncf.register(FAST):
        raise RuntimeError("on purpose")
    assert not zaq_nncf.is_registered()


def test_it_gives_what_quantize_gives(net: nn.Module, images: Tensor, hooks: Hooks) -> None:
    with zaq_nncf.register(FAST, overrides={"fc": PWLQSpec(bits=6)}):
        student = plain(net, images)
    assert bits(hooks(student)) == {4, 6}
    records = zaq_nncf.audit(student, images)
    assert len(records.quantized) == 5
    assert records["fc"].activation == "uniform 8 bits per tensor"
    expected = zaq_nncf.quantize(net, [images], FAST, overrides={"fc": PWLQSpec(bits=6)})
    for name, module in hooks(student).items():
        if isinstance(module, PWLQWeightQuantizer):
            weight = student.get_parameter(module.weight)
            assert torch.equal(module(weight), hooks(expected)[name](weight)), name


def test_quantize_leaves_nothing_registered(net: nn.Module, images: Tensor) -> None:
    zaq_nncf.quantize(net, [images], FAST)
    assert not zaq_nncf.is_registered()
    with pytest.raises(ValueError, match="no layer matches"):
        zaq_nncf.quantize(net, [images], FAST, overrides={"nowhere": None})
    assert not zaq_nncf.is_registered()
    with zaq_nncf.register(FAST):
        zaq_nncf.quantize(net, [images], PWLQSpec(bits=3, policy="gaussian"))
        assert zaq_nncf.is_registered()


def test_plain_nncf_in_the_same_process_is_the_same_before_and_after(
    net: nn.Module, images: Tensor
) -> None:
    before = plain(net, images)(images)
    with zaq_nncf.register(FAST):
        between = plain(net, images)(images)
    assert not torch.equal(between, before)
    assert torch.equal(plain(net, images)(images), before)


def test_another_thread_is_not_affected_by_quantize(
    net: nn.Module, images: Tensor, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain NNCF in one thread while this package quantizes in another."""
    import zaq_nncf.flow

    original, results = nncf.quantize, []

    def meanwhile(*args: object, **kwargs: object) -> nn.Module:
        other = threading.Thread(
            target=lambda: results.append(ours(hooks(original(*args, **kwargs))))
        )
        other.start()
        other.join()
        return original(*args, **kwargs)

    monkeypatch.setattr(zaq_nncf.flow.nncf, "quantize", meanwhile)
    student = zaq_nncf.quantize(net, [images], FAST)
    assert ours(hooks(student))
    assert results == [False]


def test_overrides_by_class_need_the_model() -> None:
    with pytest.raises(ValueError, match=r"overrides\[Linear\].* need the model, which register"):
        zaq_nncf.register(FAST, overrides={nn.Linear: None})
    assert not zaq_nncf.is_registered()
