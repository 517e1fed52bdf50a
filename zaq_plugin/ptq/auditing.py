"""What became of a simulated student's weights: their codes and levels, and the audit's records."""

from __future__ import annotations

from torch import nn

from zaq_plugin.fake_quantize import PWLQActivationFakeQuantize
from zaq_plugin.ptq.compound import CompoundFakeQuantize
from zaq_plugin.ptq.plan import plans_of
from zaq_plugin.pwlq import PWLQTensor, sqnr_db
from zaq_plugin.report import Audit, LayerRecord
from zaq_plugin.report.records import weight_facts
from zaq_plugin.student import FloatWeights, student_of
from zaq_plugin.student.fake_quantizers import input_quantizer
from zaq_plugin.student.module_student import parametrized_layer


def audit(student: nn.Module, *, reference: nn.Module | None = None) -> Audit:
    """What was quantized, how and how well, and what was not and why, one record per weight.

    Args:
        student: What `simulate` returned.
        reference: The float model that `simulate` got: the noise of each weight is measured against
            its weights. By default it is measured against the student's own float weights, which is
            the same until something moves them.

    Raises:
        ValueError: If ``student`` does not come from `simulate`.
    """
    plans = plans_of(student)
    if plans is None:
        raise ValueError(f"{type(student).__name__} carries no plan; pass what simulate() returned")
    records, weights = Audit(), FloatWeights(reference)
    seen: dict[int, str] = {}
    tensor: PWLQTensor | CompoundFakeQuantize
    for plan in plans.values():
        if plan.weights is None:
            reason = plan.reason or "unknown"
            records.add(LayerRecord(plan.name, plan.kind, plan.numel, False, reason))
            continue
        module, remark = student.get_submodule(plan.name), plan.reason
        layer = parametrized_layer(plan.name, module)
        if layer is None:
            raise ValueError(f"layer {plan.name!r} has lost its fake-quantizer; simulate() again")
        fake_quant = layer.quantizer
        if isinstance(fake_quant, CompoundFakeQuantize):
            remark = "; ".join(text for text in (remark, fake_quant.remark) if text)
            tensor = fake_quant
        else:
            tensor = layer.tensor()
        facts = weight_facts(fake_quant.spec, tensor)
        if reference is not None and isinstance(tensor, PWLQTensor):
            facts["sqnr_db"] = sqnr_db(weights.of(layer), tensor.dequantize())
        twin_name = seen.setdefault(id(layer.parameter), plan.name)
        shared = twin_name != plan.name
        if shared:
            remark = f"shares its weight with {twin_name!r}, where it is counted"
            facts["stored_bytes"] = 0
        records.add(
            LayerRecord(
                plan.name,
                plan.kind,
                0 if shared else plan.numel,
                True,
                remark,
                kernel="simulated",
                activation=_activation_label(module),
                **facts,
            )
        )
    return records


def _activation_label(layer: nn.Module) -> str:
    watcher = input_quantizer(layer)
    if watcher is None:
        return "float"
    if isinstance(watcher, PWLQActivationFakeQuantize):
        label = watcher.format.label + " per tensor"
    else:
        bits = int(watcher.bits)
        label = f"uniform {bits}b MAC/{bits}b stored per tensor"
    if not bool(watcher.fake_quant_enabled[0]):
        label += " (not calibrated)"
    return label


def quantized_tensors(student: nn.Module) -> dict[str, PWLQTensor]:
    """Codes and levels of every quantized weight by layer name.

    ``dequantize()`` of each equals the layer's fake-quantized weight bit for bit.

    Raises:
        ValueError: If the model has no fake-quantized weights, or one that is several tensors.
    """
    tensors = {}
    for name, layer in student_of(student).layers().items():
        if isinstance(layer.quantizer, CompoundFakeQuantize):
            raise ValueError(
                f"the weight of layer {name!r} is put together from "
                f"{len(layer.quantizer.tensors)} quantized tensors ({layer.quantizer.remark}); "
                "read them from its fake-quantizer"
            )
        tensors[name] = layer.tensor()
    return tensors
