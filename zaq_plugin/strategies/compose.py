"""`apply`: a strategy, or a composition of several, on a model."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from zaq_plugin.observers import MinMaxObserver
from zaq_plugin.ptq import audit, fold_batch_norm, simulate
from zaq_plugin.ptq.bake import copied
from zaq_plugin.ptq.host import SIMULATION
from zaq_plugin.ptq.plan import make_plan
from zaq_plugin.ptq.wrappers import unwrapped
from zaq_plugin.pwlq import sqnr_db
from zaq_plugin.report import Audit
from zaq_plugin.strategies.images import Real
from zaq_plugin.strategies.registry import find
from zaq_plugin.strategies.request import Applied, Request
from zaq_plugin.strategies.stage import SINGLE, SLOTS, ImageStage, Stage, Strategy, Work
from zaq_plugin.student import FloatWeights, student_of
from zaq_plugin.student.assign import module_classes
from zaq_plugin.student.host import Assignment, Host, find_host
from zaq_plugin.student.modes import to_evaluation
from zaq_plugin.student.proof import require_float_function


def compose(what: str | Strategy | Sequence[str | Strategy | Stage]) -> Strategy:
    """One strategy from a name, a composed name such as ``dfq+adaround``, or a list of parts.

    Images, weights and activations are those of the first strategy named, unless a part
    (`PARTS`) says otherwise; what happens before and after quantization adds up, each once, in the
    order named. So ``dfq+adaround`` is DFQ, and then AdaRound's rounding; ``dfq+mse+adaround``
    starts from the clips of least squared error. ``pwlq+gptq`` corrects biases once: error feedback
    does it itself.

    Raises:
        ValueError: If a name is unknown, or nothing says which grid weights and activations get.
    """
    parts: list[Strategy | Stage] = []
    items = [what] if isinstance(what, str | Strategy) else list(what)
    for item in items:
        if isinstance(item, str):
            parts += [find(name.strip()) for name in item.split("+")]
        else:
            parts.append(item)
    if not parts:
        raise ValueError("a composition needs at least one strategy; got an empty list")
    if len(parts) == 1 and isinstance(parts[0], Strategy) and not parts[0].component:
        return parts[0]
    slots: dict[str, list[Stage]] = {slot: [] for slot in SLOTS}
    for part in parts:
        for stage in part.stages if isinstance(part, Strategy) else (part,):
            stages = slots[stage.slot]
            if stage.slot in SINGLE:
                if not stages or not isinstance(part, Strategy) or part.component:
                    stages[:] = [stage]
            elif stage not in stages and all(stage.name != other.name for other in stages):
                stages.append(stage)
    for slot in ("weights", "activations"):
        if not slots[slot]:
            names = "+".join(p.name for p in parts)
            raise ValueError(
                f"{names!r} does not say which grid {slot} get; name a strategy first, as in "
                f"'rq+{names}'"
            )
    replaced = {name for stage in slots["after"] for name in stage.replaces}
    slots["after"] = [stage for stage in slots["after"] if stage.name not in replaced]
    named = [p for p in parts if isinstance(p, Strategy)]
    methods = [p for p in named if not p.component]
    images = [s for s in slots["images"] if isinstance(s, ImageStage)]
    own_images = any(
        p.component and any(isinstance(s, ImageStage) for s in p.stages) for p in named
    )
    return Strategy(
        name="+".join(p.name for p in parts),
        title=", ".join(p.title if isinstance(p, Strategy) else p.name for p in parts),
        paper="; ".join(dict.fromkeys(p.paper for p in named if p.paper)),
        data=images[0].data if images else "none",
        trains=any(p.trains for p in named),
        stages=tuple(stage for slot in SLOTS for stage in slots[slot]),
        takes_images=all(p.takes_images for p in methods) and not own_images,
        levels=next((p.levels for p in methods if p.levels != "uniform"), "uniform"),
    )


@torch.enable_grad()
def apply(
    strategy: str | Strategy | Sequence[str | Strategy | Stage], model: nn.Module, request: Request
) -> Applied:
    """Quantize a float model by a strategy; the model is not touched.

    Stages that learn do so under the caller's ``torch.no_grad()``, too.

    Args:
        strategy: A name of `STRATEGIES`, a composition such as ``dfq+adaround``, or a list of
            strategies and stages.
        model: In evaluation mode.
        request: Bits, levels, images.

    Raises:
        TypeError: If the model is no module, such as a path.
        ValueError: If the strategy is unknown, needs what the request or the model does not have
            (real images, BatchNorm, layers to equalise), or does not exist at these levels or bits.
    """
    start = time.perf_counter()
    _check_model(strategy, model)
    chosen, model = _resolved(compose(strategy), request), unwrapped(model)
    work = _begin(chosen, model, request)
    for stage in chosen.stages:
        with work.timed(stage.name):
            stage.prepare(work)
    with work.timed("prepare"):
        work.student = _prepared(work)
    if work.fixed_batch is not None and chosen.trains:
        raise ValueError(
            f"strategy {chosen.name!r} needs batches of any size, and {work.host.name} takes "
            f"{work.fixed_batch} only: {'; '.join(work.notes)}"
        )
    for stage in chosen.stages:
        with work.timed(stage.name):
            stage.finish(work)
    to_evaluation(work.student)
    report = _audited(work).require_any()
    return Applied(
        model=work.student,
        strategy=chosen.name,
        seconds=time.perf_counter() - start,
        notes=work.notes,
        layers=list(report.records),
        data=work.data,
        levels=work.levels,
        images=work.images_made if work.data == "synthetic" else None,
        image_count=0 if work.images_made is None else len(work.images_made),
        stages=work.stages,
        host=work.host.name,
        fixed_batch=work.fixed_batch,
    )


def _check_model(strategy: object, model: object) -> None:
    """Refuse what is no model, a path above all.

    Raises:
        TypeError: with the way out.
    """
    if isinstance(strategy, nn.Module):
        raise TypeError(
            f"apply(strategy, model, request) takes the strategy first; got a "
            f"{type(strategy).__name__}, a model."
        )
    if isinstance(model, nn.Module):
        return
    way_out = (
        "make the model and load its weights first (model.load_state_dict), or let zaq-quantize "
        "run --model NAME --checkpoint FILE do both"
        if isinstance(model, str | os.PathLike)
        else "pass the float model itself"
    )
    raise TypeError(f"apply expects an nn.Module as its model, got {model!r:.60}; {way_out}.")


def _prepared(work: Work) -> nn.Module:
    """The student, prepared in the work's host."""
    request = work.request
    options: dict[str, Any] = {
        "overrides": work.overrides or None,
        "input_bits": request.input_bits,
        "first_last": request.first_last,
        "depthwise": request.depthwise,
        "example_inputs": request.example_inputs,
    }
    if work.host is SIMULATION:  # which remembers the reason for every exception
        return simulate(
            work.folded,
            work.spec,
            request.activation_bits,
            observer=work.observer,
            per_tensor=request.granularity == "tensor",
            **options,
        )
    classes = module_classes(work.folded)
    plans = make_plan(work.folded, work.spec, request.activation_bits, classes=classes, **options)
    usual = (work.spec, request.activation_bits)
    layers: dict[str, Any] = {}
    for plan in plans:
        own = (plan.weights, request.activation_bits if plan.is_input else plan.activations)
        if plan.weights is None:
            layers[plan.name] = None
        elif own != usual:
            layers[plan.name] = own
    assignment = replace(_wanted(work), weights=work.spec, layers=layers, observer=work.observer)
    prepared = work.host.prepare(work.folded, request.example_inputs, assignment)
    if request.check and prepared.fixed_batch is None:
        require_float_function(prepared.model, work.folded, request.example_inputs)
    work.fixed_batch = prepared.fixed_batch
    work.notes += prepared.notes
    return prepared.model


def _wanted(work: Work) -> Assignment:
    """What can be said of the formats before any stage has run."""
    request = work.request
    return Assignment(
        work.spec,
        request.activation_bits,
        input_bits=request.input_bits,
        per_tensor=request.granularity == "tensor",
    )


def _audited(work: Work) -> Audit:
    """The audit, with the noise of each weight measured against the float model's."""
    if work.host is SIMULATION:
        report = audit(work.student, reference=work.folded)
        work.student.zaq_audit = report  # type: ignore[assignment]
        return report
    layers, weights = student_of(work.student).layers(), FloatWeights(work.teacher)
    records = []
    for record in work.host.audit(work.student).records:
        layer = layers.get(record.name)
        if record.quantized and layer is not None:
            noise = sqnr_db(weights.of(layer), layer.quantized())
            record = replace(record, sqnr_db=noise)
        records.append(record)
    return Audit(records)


def synthetic_images(
    strategy: str | Strategy | Sequence[str | Strategy | Stage], model: nn.Module, request: Request
) -> Tensor | None:
    """The synthetic images that a strategy would make, to be shared through ``Request.synthetic``.

    They depend on the model, the seed, the count, the batch size and the strategy's ``recipe``
    alone, not on bits.

    Returns:
        (n, C, H, W), or None if the strategy makes none.
    """
    chosen = compose(strategy)
    if chosen.recipe is None:
        return None
    model = unwrapped(model)
    work = Work(request, copied(model), model, trains=chosen.trains)
    for stage in chosen.stages:
        if isinstance(stage, ImageStage):
            return stage.make(work)
    return None


def _begin(chosen: Strategy, model: nn.Module, request: Request) -> Work:
    levels = chosen.levels if request.levels == "auto" else request.levels
    if request.levels == "auto" and levels == "pwlq" and request.weight_bits < 3:
        levels = "uniform"
    if isinstance(model, fx.GraphModule):
        model = copied(model)  # statistics are read through probes in a graph
    work = Work(request, model, model, levels, observer=MinMaxObserver, trains=chosen.trains)
    work.host = SIMULATION if request.host == SIMULATION.name else find_host(request.host)
    work.overrides = dict(request.overrides)
    check_host(chosen, work.host, _wanted(work))
    _check_images(chosen, request)
    if levels != request.levels and chosen.levels != levels:
        work.notes.append("uniform levels: PWLQ needs at least 3 stored bits")
        warnings.warn(
            f"{chosen.name}: PWLQ needs at least 3 stored bits (2 MAC bits and one for the "
            f"region), and weight_bits={request.weight_bits} are stored bits: weights get uniform "
            "levels. Ask for weight_bits=3 for PWLQ; levels='uniform' says that uniform ones are "
            "meant.",
            stacklevel=4,
        )
    work.folded = fold_batch_norm(model, request.example_inputs)
    return work


def check_host(chosen: Strategy, host: Host, assignment: Assignment) -> None:
    """Refuse what a host cannot do, before anything runs.

    Raises:
        ValueError: If the strategy or the formats do not go with the host; the text says why.
    """
    for stage in chosen.stages if host.kernels == "int8" else ():
        if stage.several_tensors:
            raise ValueError(
                f"strategy {chosen.name!r} does not go with host {host.name!r}: {stage.name} puts "
                "weights together from several tensors, which no int8 kernel multiplies by; use "
                "host 'simulated', or a strategy of one grid per channel, such as pwlq+gptq"
            )
    reason = host.why_not(assignment)
    if reason is not None:
        raise ValueError(reason)


def _check_images(chosen: Strategy, request: Request) -> None:
    if chosen.data == "real" and request.images is None:
        raise ValueError(
            f"strategy {chosen.name!r} needs real images, and the request has none; pass "
            "Request(images=...), a tensor (n, C, H, W) in the model's normalisation, or use a "
            "strategy that makes its own, such as 'zaq'."
        )


def _resolved(chosen: Strategy, request: Request) -> Strategy:
    """The strategy with the request's real images in the place of synthetic ones, if it may."""
    if request.images is None or not chosen.takes_images:
        return chosen
    stages = tuple(Real() if isinstance(s, ImageStage) else s for s in chosen.stages)
    return replace(chosen, stages=stages)
