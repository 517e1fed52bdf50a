"""`with_pwlq`: PWLQ weights in any torchao quantizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantizer import QuantizationSpec, Quantizer

from zaq_plugin.pwlq import PWLQSpec, QuantSpec
from zaq_plugin.student.assign import Override
from zaq_pt2e._compat import annotation_of, is_fake_quantize
from zaq_pt2e.batch_norm import own_tensors, prepare_batch_norms
from zaq_pt2e.bias import give_biases, watch_inputs
from zaq_pt2e.graph import Layer, add_note, layers
from zaq_pt2e.quantizer import (
    is_weight_module,
    require_any,
    require_layers,
    shared_grids,
    unfit,
)
from zaq_pt2e.ready import NotForNNCF, make_ready
from zaq_pt2e.settings import Settings, check_weights, weight_factory


class PWLQDecorated(NotForNNCF, Quantizer):
    """A quantizer whose weights are PWLQ; made by `with_pwlq`.

    Attributes:
        base: The quantizer that decides what is quantized, and how activations are.
        qat: Whether the last annotated model got fake-quantizers, as the base chose.
    """

    def __init__(
        self, base: Quantizer, settings: Settings, learnable: bool, bias_correction: bool
    ) -> None:
        super().__init__()
        self.base, self.settings = base, settings
        self.learnable, self.bias_correction = learnable, bias_correction
        self.qat = False

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """What `PWLQQuantizer` does to the graph, then what the base does."""
        # In prepare_pt2e it is done already, and nothing is left to be done for training.
        own_tensors(model)
        make_ready(model, training=True)
        give_biases(model, training=True)
        return self.base.transform_for_annotation(model)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate by the base, then replace the weights' observers.

        Raises:
            ValueError: nothing was quantized, or a key or pattern that no layer matches.
            TypeError: weights that are not float32.
        """
        require_layers(model, list(layers(model)))
        model = self.base.annotate(model) or model
        all_layers = list(layers(model))
        self.qat = False
        quantized = [self._replace(model, layer) for layer in all_layers]
        self.settings.require_used({layer.original: layer.modules for layer in all_layers})
        require_any(all_layers, quantized)
        if self.qat:
            prepare_batch_norms(model)
        return model

    def _replace(self, model: GraphModule, layer: Layer) -> bool:
        note = {"name": layer.name, "kind": layer.kind}
        name = type(self.base).__name__
        annotation = annotation_of(layer.node)
        edges = {} if annotation is None else annotation.input_qspec_map
        weight: Any = layer.node.args[1]
        stock: Any = edges.get(weight)
        formats, reason = self.settings.formats(layer.original, layer.modules)
        if not isinstance(stock, QuantizationSpec):
            reason = f"{name} leaves it float"
        elif formats is None:
            # Kept as the base has it, so that it is quantized, but not by us.
            reason = f"left to {name} ({reason})"
        else:
            reason = unfit(model, layer)
        if reason is not None or formats is None:
            add_note(layer.node, **note, reason=reason)
            return False
        qat = is_fake_quantize(stock.observer_or_fake_quant_ctr)
        self.qat = self.qat or qat
        edges[weight] = dataclasses.replace(
            stock,
            dtype=torch.int8,
            quant_min=-127,
            quant_max=127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=layer.ch_axis,
            observer_or_fake_quant_ctr=weight_factory(formats[0], qat, self.learnable and qat),
        )
        grids = shared_grids(layer)
        add_note(layer.node, **note, reason=None, spec=formats[0].label, grids=grids)
        return True

    def validate(self, model: GraphModule) -> None:
        """What the base checks."""
        self.base.validate(model)

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[Any, Any]
    ) -> None:
        """What the base does, and what bias correction needs."""
        self.base.prepare_obs_or_fq_callback(model, edge_or_node_to_obs_or_fq)
        if self.bias_correction and not self.qat:
            watch_inputs(model, edge_or_node_to_obs_or_fq, is_weight_module)


def with_pwlq(
    base: Quantizer,
    spec: QuantSpec | None = None,
    *,
    overrides: Mapping[Any, Override] | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    learnable: bool = False,
    bias_correction: bool = True,
) -> PWLQDecorated:
    """A quantizer that works as ``base`` does, but with PWLQ weights.

        base = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(program.module(), with_pwlq(base, PWLQSpec(bits=4)))

    Args:
        base: Any torchao quantizer. It decides which layers are quantized, how activations are, and
            whether there are observers or fake-quantizers.
        spec: The weights' format; ``PWLQSpec()`` if None.
        overrides, include, exclude: As in `PWLQQuantizer`; a layer that they leave out keeps the
            base's own weight quantizer. Activations in them have no effect.
        learnable: With fake-quantizers: train the weights' edges, too.
        bias_correction: As in `PWLQQuantizer`.

    Raises:
        TypeError: base is no quantizer, or spec no spec.
    """
    if not isinstance(base, Quantizer):
        raise TypeError(
            f"with_pwlq: expected a torchao quantizer; got {type(base).__name__}. A quantizer "
            "of torch.ao is another class: import it from torchao.quantization.pt2e.quantizer."
        )
    spec = PWLQSpec() if spec is None else check_weights(spec, "with_pwlq: spec")
    settings = Settings((spec, None), overrides, include, exclude)
    return PWLQDecorated(base, settings, learnable, bias_correction)
