"""What zaq_nncf leans on in NNCF, fact by fact.

If one of these fails after an upgrade, the host has changed: the test's name and text say what, the
code that leans on it is named behind "Used by".
"""

import copy
import inspect
import os

import nncf
import nncf.torch
import pytest
import torch
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
from nncf.torch.function_hook.wrapper import get_hook_storage
from torch import Tensor, nn

import zaq_nncf
from zaq_nncf import _compat
from zaq_nncf.student import run_inside


@pytest.fixture
def plain(net: nn.Module, images: Tensor) -> nn.Module:
    """NNCF as it is, on the folded model; nothing of its own kernels has run."""
    chosen = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.DISABLE, disable_bias_correction=True
    )
    model = zaq_nncf.prepare_model(net)
    return nncf.quantize(model, nncf.Dataset([images]), advanced_parameters=chosen)


def test_hooks_are_named_by_operator_and_port(plain: nn.Module) -> None:
    """Used by audit, placement and student."""
    names = [name for name, _ in get_hook_storage(plain).named_hooks()]
    assert "pre_hooks.block/conv1/conv2d/0__1.0" in names
    assert "post_hooks.x__0.0" in names
    decoded = _compat.decode_hook_name("pre_hooks.block/conv1/conv2d/0__1.0")
    assert decoded == ("pre_hooks", "block/conv1/conv2d/0", 1)
    assert isinstance(plain.get_submodule(_compat.HOOKS), _compat.HookStorage)
    assert _compat.hooks_of(plain) is plain.get_submodule(_compat.HOOKS)
    assert _compat.is_wrapped(plain)


def test_weights_are_symmetric_8_bits_with_a_narrow_range(plain: nn.Module) -> None:
    """Used by quantizers and stripping: the int8 grid that PWLQ's levels lie on."""
    storage = get_hook_storage(plain)
    weights = {n: m for n, m in storage.named_hooks() if n.startswith("pre_hooks")}
    assert len(weights) == 5
    for module in weights.values():
        assert type(module) is _compat.SymmetricQuantizer
        assert (module.num_bits, module.narrow_range, module.signed) == (8, True, True)
        assert (module.level_low, module.level_high) == (-127, 127)
        low, high, _, zero_point = module.get_parameters_for_torch_fq()
        assert (low, high, int(zero_point.abs().max())) == (-128, 127, 0)
        assert set(module._qspec.get_arg_names()) == {
            "num_bits",
            "mode",
            "signedness_to_force",
            "narrow_range",
            "half_range",
            "scale_shape",
            "logarithm_scale",
            "is_quantized_on_export",
        }


def test_depthwise_convolutions_get_activations_per_channel(plain: nn.Module) -> None:
    """Why quantize asks for one grid per tensor, unless told otherwise. Used by flow."""
    module = dict(get_hook_storage(plain).named_hooks())["post_hooks.block/relu/relu/0__0.0"]
    assert module.per_channel
    assert module.scale_shape == (1, 16, 1, 1)


def test_two_static_methods_make_all_quantizers() -> None:
    """Used by registration, which replaces them."""
    for name in _compat.PLACING:
        method = _compat.PTMinMaxAlgoBackend.__dict__[name]
        assert isinstance(method, staticmethod), name
        names = list(inspect.signature(method.__func__).parameters)
        assert names[0] == "nncf_graph"
        assert names[2:] == ["quantizer_config", "parameters"]


def test_a_command_holds_places_and_module(net: nn.Module, images: Tensor) -> None:
    """Used by registration."""
    from nncf.torch.function_hook.commands import PT2InsertionCommand

    command = PT2InsertionCommand([], nn.Identity())
    assert command.target_points == []
    assert isinstance(command.hook_module, nn.Identity)


def test_quantizers_are_known_by_their_functions_name() -> None:
    """Used by quantizers: two functions carry the names of NNCF's."""
    from zaq_nncf.quantizing import asymmetric_quantize, symmetric_quantize

    for function in (asymmetric_quantize, symmetric_quantize):
        assert function.__name__ in _compat.QUANTIZE_NODE_TYPES


def test_the_graph_has_ports_constants_and_metatypes(plain: nn.Module, images: Tensor) -> None:
    """Used by placement and registration."""
    graph = _compat.build_nncf_graph(plain, images)
    assert [n.node_name for n in graph.get_input_nodes()] == ["x"]
    node = graph.get_node_by_name("block/conv2/conv2d/0")
    assert _compat.is_weighted(node)
    assert node.metatype.weight_port_ids == [1]
    assert node.metatype.bias_port_id == 2
    constant = _compat.constant_at(node, 1, graph)
    assert constant.layer_attributes.name == "block.conv2.weight"
    assert _compat.weight_axis(node, 4, 1) == 0
    before = {e.input_port_id: e.from_node for e in graph.get_input_edges(node)}
    assert _compat.is_quantize_node(before[1])
    assert before[2].layer_attributes.name == "block.conv2.bias"
    assert not _compat.is_weighted(graph.get_node_by_name("block/relu/relu/0"))


def test_one_submodule_runs_as_the_whole_model_runs_it(plain: nn.Module, images: Tensor) -> None:
    """Used by student: outside of the root's forward pass no hook runs."""
    seen: dict[str, Tensor] = {}
    handles = [
        plain.block.register_forward_pre_hook(lambda m, args: seen.update(x=args[0])),
        plain.block.register_forward_hook(lambda m, args, out: seen.update(y=out)),
    ]
    plain(images)
    for handle in handles:
        handle.remove()
    assert torch.equal(run_inside(plain, "block", seen["x"]), seen["y"])
    assert not torch.equal(plain.block(seen["x"]), seen["y"])
    inner = run_inside(plain, "block.short.0", seen["x"])
    assert not torch.equal(inner, plain.get_submodule("block.short.0")(seen["x"]))


def test_a_pass_counts_operators_and_modules_that_are_called(
    plain: nn.Module, images: Tensor
) -> None:
    """Used by parts: items of lists are told apart by these."""
    seen: list[tuple[list[nn.Module], dict[str, int]]] = []

    def look(*_: object) -> None:
        mode = _compat.current_mode()
        assert mode is not None
        seen.append((list(mode.module_call_stack), dict(mode.op_calls)))

    handle = plain.block.conv2.register_forward_pre_hook(look)
    plain(images)
    handle.remove()
    assert _compat.current_mode() is None
    stack, calls = seen[0]
    assert stack == [plain, plain.block, plain.block.conv2]
    assert calls["block/conv1/conv2d"] == 1
    assert "block/conv2/conv2d" not in calls


def test_copies_keep_their_hooks_to_themselves(plain: nn.Module, images: Tensor) -> None:
    """Used by stripping and by the teacher."""
    before = plain(images)
    other = copy.deepcopy(plain)
    for _, module in get_hook_storage(other).named_hooks():
        module.disable_quantization()
    assert not torch.equal(other(images), before)
    assert torch.equal(plain(images), before)


def test_the_overflow_fix_doubles_the_first_layers_scale(net: nn.Module, images: Tensor) -> None:
    """Why it is switched off. Used by flow."""

    def first_scale(fix: OverflowFix | None) -> Tensor:
        chosen = AdvancedQuantizationParameters(overflow_fix=fix, disable_bias_correction=True)
        model = zaq_nncf.prepare_model(net)
        student = nncf.quantize(model, nncf.Dataset([images]), advanced_parameters=chosen)
        return dict(get_hook_storage(student).named_hooks())["pre_hooks.stem/0/conv2d/0__1.0"].scale

    ratio = first_scale(None) / first_scale(OverflowFix.DISABLE)
    assert torch.allclose(ratio, torch.full_like(ratio, 2.0), rtol=0.02)


def test_four_bit_weights_are_refused_for_processors(net: nn.Module, images: Tensor) -> None:
    """Why NNCF's own narrow quantizers are no way: PWLQ says 8 bits and keeps its width itself."""
    from nncf.quantization.advanced_parameters import QuantizationParameters

    four = AdvancedQuantizationParameters(
        weights_quantization_params=QuantizationParameters(num_bits=4)
    )
    with pytest.raises(ValueError, match="incompatible"):
        nncf.quantize(net, nncf.Dataset([images]), advanced_parameters=four)


def test_the_compiled_kernels() -> None:
    """Used by extension."""
    assert os.environ.get(_compat.TIMEOUT_VARIABLE) is None
    assert _compat.TIMEOUT_VARIABLE == "NNCF_EXTENSION_LOAD_TIMEOUT"
    assert _compat.extension_folder().name == str(torch.__version__)
    assert _compat.extension_is_loaded() in (True, False)
    assert isinstance(_compat.fell_back(), bool)
    assert callable(_compat.ReferenceQuantizedFunctions.Quantize_forward)


def test_operators_of_quantized_decomposed_are_registered() -> None:
    """Used by static: torch.export cannot take fake-quantize operators with a dynamic batch."""
    ops = torch.ops.quantized_decomposed
    x = torch.tensor([-1.0, 0.26, 99.0])
    grid = (0.5, 3, 0, 255)
    codes = ops.quantize_per_tensor.default(x, *grid, torch.uint8)
    values = ops.dequantize_per_tensor.default(codes, *grid, torch.uint8)
    assert torch.equal(values, torch.fake_quantize_per_tensor_affine(x, *grid))
