"""`PWLQQuantizer`, for the stock ``prepare_pt2e`` / ``prepare_qat_pt2e`` / ``convert_pt2e``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    Quantizer,
    SharedQuantizationSpec,
)

from zaq_plugin.observers import TopKMedianObserver
from zaq_plugin.pwlq import PWLQSpec, QuantSpec
from zaq_plugin.student.assign import Override
from zaq_pt2e._compat import ANNOTATION, annotation_of
from zaq_pt2e.batch_norm import own_tensors, prepare_batch_norms
from zaq_pt2e.bias import give_biases, watch_inputs
from zaq_pt2e.conversion import WeightModule
from zaq_pt2e.graph import (
    Layer,
    add_note,
    argument,
    constant_value,
    is_constant,
    is_float_tensor,
    layers,
    module_stack,
)
from zaq_pt2e.outputs import annotate_joins, annotate_outputs
from zaq_pt2e.parts import hidden_parts
from zaq_pt2e.ready import NotForNNCF, make_ready, note_prepared
from zaq_pt2e.settings import (
    Activations,
    Settings,
    activation_qspec,
    check_activations,
    check_weights,
    weight_qspec,
)

_aten = torch.ops.aten
_ADD = (_aten.add.Tensor, _aten.add_.Tensor)
_MAX_POOL = (_aten.max_pool1d.default, _aten.max_pool2d.default, _aten.max_pool3d.default)
_POOL = (
    _aten.avg_pool1d.default,
    _aten.avg_pool2d.default,
    _aten.avg_pool3d.default,
    _aten.adaptive_avg_pool1d.default,
    _aten.adaptive_avg_pool2d.default,
    _aten.adaptive_avg_pool3d.default,
)
_MATMUL = {
    _aten.matmul.default: 2,
    _aten.bmm.default: 2,
    _aten.scaled_dot_product_attention.default: 3,
}


class PWLQQuantizer(NotForNNCF, Quantizer):
    """Puts PWLQ weights and uniform activations on a graph from ``torch.export``.

    Weights of convolutions, transposed convolutions and linear layers are quantized per output
    channel. Inputs of these, of additions and of pooling are quantized per tensor; the model's
    output stays float. Layers are found by operator, so any way of exporting works.

        program = torch.export.export(model.eval(), example_inputs)
        prepared = prepare_pt2e(program.module(), PWLQQuantizer(PWLQSpec(bits=4)))
        for images in batches: prepared(images)
        converted = convert_pt2e(prepared)

    Args:
        spec: The weights' format; ``PWLQSpec()`` (4 MAC bits, 5 stored) if None.
        activations: Bits of the uniform grid (exact on int8 kernels), 2 to 8; a `PWLQSpec` for
            PWLQ activations, which are simulated and cannot be converted; None for weight-only.
        overrides: What differs, by layer name, name of a module around it, pattern (``*.conv1``)
            or module class. A value is a weight format, a pair (weight format, activations), or
            None to leave the layer float. See `zaq_plugin.student.assign` for which one wins.
        include: Names or patterns; if given, all other layers stay float.
        exclude: Names or patterns of layers that stay float.
        qat: Fake-quantizers, for ``prepare_qat_pt2e``, in place of observers.
        matmul: Quantize the inputs of matrix products, too: attention.
        observer: Class or factory of the activations' range observer.
        input_bits: Bits of the model's inputs, whatever ``activations`` says.
        other_bits: Bits of the inputs of additions and pooling, which no narrow multiplier reads.
        learnable: With ``qat``: train activation steps and weight edges, too.
        bias_correction: Take the weights' mean error off the biases in conversion (not with
            ``qat``, whose training does that).
        outputs: Give what layers, additions and pooling hand on a grid of ``other_bits``, too,
            where nobody who reads it does, and products and concatenations: kernels of devices.

    Raises:
        TypeError, ValueError: an argument that is no such thing; in ``annotate``, a model with
            nothing to quantize, a key or pattern that no layer matches, or weights that are not
            float32 or not finite.
    """

    def __init__(
        self,
        spec: QuantSpec | None = None,
        activations: Activations = 8,
        *,
        overrides: Mapping[Any, Override] | None = None,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        qat: bool = False,
        matmul: bool = False,
        observer: Callable[..., Any] = TopKMedianObserver,
        input_bits: int = 8,
        other_bits: int = 8,
        learnable: bool = False,
        bias_correction: bool = True,
        outputs: bool = False,
    ) -> None:
        super().__init__()
        spec = PWLQSpec() if spec is None else check_weights(spec, "PWLQQuantizer: spec")
        activations = check_activations(activations, "PWLQQuantizer: activations")
        if learnable and not qat:
            raise ValueError("learnable=True trains, which needs qat=True and prepare_qat_pt2e.")
        self.settings = Settings((spec, activations), overrides, include, exclude)
        self.qat, self.matmul, self.learnable = qat, matmul, learnable
        self.observer, self.bias_correction, self.outputs = observer, bias_correction, outputs
        self.input_bits = _bits(input_bits, "input_bits")
        self.other_bits = _bits(other_bits, "other_bits")

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Make the graph ready: computed weights become weights, BatchNorm is folded.

        For training the graph gets tensors of its own, and BatchNorm the form that the host wants.
        """
        own_tensors(model)
        make_ready(model, training=self.qat)
        if self.qat:
            prepare_batch_norms(model)
        give_biases(model, training=self.qat)
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Say on every node how its inputs are quantized; see the class for the errors."""
        all_layers = list(layers(model))
        require_layers(model, all_layers)
        quantized = [self._annotate_layer(model, layer) for layer in all_layers]
        self.settings.require_used({layer.original: layer.modules for layer in all_layers})
        require_any(all_layers, quantized)
        for node in model.graph.nodes:
            if node.op == "call_function" and annotation_of(node) is None:
                self._annotate_other(node)
        if self.outputs:
            annotate_joins(model, lambda: self._activation(self.other_bits, None))
            annotate_outputs(model, lambda: self._activation(self.other_bits, None))
        return model

    def _annotate_layer(self, model: GraphModule, layer: Layer) -> bool:
        node = layer.node
        note = {"name": layer.name, "kind": layer.kind}
        formats, reason = self.settings.formats(layer.original, layer.modules)
        if annotation_of(node) is not None:
            formats, reason = None, "annotated by another quantizer"
        elif formats is not None:
            reason = unfit(model, layer)
        if formats is None or reason is not None:
            add_note(node, **note, reason=reason)
            return False
        spec, activations = formats
        x: Any
        weight: Any
        x, weight = node.args[:2]
        # The host's Conv-BN fusion takes them by order: input first, then weight.
        edges: dict[Node, Any] = {
            x: None if activations is None else self._activation(activations, x),
            weight: weight_qspec(spec, layer.ch_axis, self.qat, self.learnable),
        }
        node.meta[ANNOTATION] = QuantizationAnnotation(input_qspec_map=edges, _annotated=True)
        add_note(node, **note, reason=None, spec=spec.label, grids=shared_grids(layer))
        return True

    def _activation(self, activations: int | PWLQSpec, source: object) -> Any:
        if isinstance(source, Node) and source.op == "placeholder":
            activations = self.input_bits
        return activation_qspec(activations, self.qat, self.observer, self.learnable)

    def _annotate_other(self, node: Node) -> None:
        """Additions, pooling and, where asked, matrix products."""
        if node.target in _ADD:
            inputs = list(node.args[:2])
            if not all(map(is_float_tensor, inputs)) or any(map(is_constant, inputs)):
                return
        elif node.target in _POOL or node.target in _MAX_POOL:
            inputs = [node.args[0]]
        elif self.matmul and node.target in _MATMUL:
            inputs = list(node.args[: _MATMUL[node.target]])
        else:
            return
        modules = module_stack(node)
        formats, _ = self.settings.formats(modules[-1][0] if modules else "", modules)
        if formats is None or formats[1] is None or not all(map(is_float_tensor, inputs)):
            return
        bits = formats[1] if node.target in _MATMUL else self.other_bits
        edges: dict[Node, Any] = {
            x: self._activation(bits, x) for x in inputs if isinstance(x, Node)
        }
        output = None
        if node.target in _MAX_POOL:  # its output needs no grid of its own
            output = SharedQuantizationSpec((inputs[0], node))
        node.meta[ANNOTATION] = QuantizationAnnotation(
            input_qspec_map=edges, output_qspec=output, _annotated=True
        )

    def validate(self, model: GraphModule) -> None:
        """Nothing is left to check after `annotate`."""

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[Any, Any]
    ) -> None:
        """Let calibration gather what bias correction needs."""
        note_prepared(model)
        if self.bias_correction and not self.qat:
            watch_inputs(model, edge_or_node_to_obs_or_fq, is_weight_module)


def _bits(value: object, name: str) -> int:
    checked = check_activations(value, f"PWLQQuantizer: {name}")
    if not isinstance(checked, int):
        raise TypeError(f"PWLQQuantizer: {name} must be a number of bits, 2 to 8; got {value!r}.")
    return checked


def is_weight_module(module: object) -> bool:
    """Whether a module is a weight observer or fake-quantizer of ours."""
    return isinstance(module, WeightModule)


def shared_grids(layer: Layer) -> str | None:
    """What the audit says about a weight in which output channels share a grid."""
    if not layer.shares_grids:
        return None
    return "channels at the same place in each group share a grid: int8 grids lie along one axis"


def require_layers(model: GraphModule, all_layers: list[Layer]) -> None:
    """Raise ValueError if the graph has no convolution and no linear layer."""
    if all_layers:
        return
    for operator, _, part in hidden_parts(model):
        if any(True for _ in layers(part)):
            raise ValueError(
                f"nothing was quantized: the model's layers sit in a part that {operator} runs, "
                "a graph of its own, in which nothing is quantized. Write the model without it, "
                "or quantize the parts one by one."
            )
    raise ValueError(
        "nothing was quantized: the graph has no convolution and no linear layer. Pass the "
        "model from torch.export.export(model, example_inputs).module()."
    )


def require_any(all_layers: list[Layer], quantized: list[bool]) -> None:
    """Raise ValueError if no layer is to be quantized, with the reasons."""
    if any(quantized):
        return
    from zaq_pt2e.graph import note_of

    shown = [f"  {x.name} ({x.kind}): {note_of(x.node).get('reason')}" for x in all_layers[:8]]
    if len(all_layers) > 8:
        shown.append(f"  ... and {len(all_layers) - 8} more")
    raise ValueError(
        f"nothing was quantized: all {len(all_layers)} layers were left alone:\n" + "\n".join(shown)
    )


def unfit(model: GraphModule, layer: Layer) -> str | None:
    """Why a layer cannot be quantized, or None.

    Raises:
        TypeError: its weight is half precision or double.
        ValueError: its weight holds NaN or infinity.
    """
    weight = argument(layer.node, 1)
    if not is_constant(weight):
        return "its weight is computed from the model's input"
    value = constant_value(model, weight)
    if value is None:
        return "its weight is no tensor of the model"
    if value.dtype != torch.float32:
        raise TypeError(
            f"{layer.name} ({layer.kind}) has {value.dtype} weights, but int8 kernels work with "
            "float32 models. Call model.float() before torch.export; the weights' int8 codes "
            "take the same room either way."
        )
    if value.numel() == 0:
        return "its weight is empty"
    if not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"{layer.name} ({layer.kind}): {int((~torch.isfinite(value)).sum())} weights are NaN "
            "or infinite. Repair the checkpoint, or leave the layer out with exclude=[...]."
        )
    return None
