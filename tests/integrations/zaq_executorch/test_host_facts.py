"""What zaq_executorch leans on in ExecuTorch, fact by fact; if one fails, the tool has changed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


def lowered(graph: nn.Module, example: Tensor, most: int | None = None) -> bytes:
    from zaq_executorch.lowering import lower

    shapes = None if most is None else ({0: torch.export.Dim("batch", min=1, max=most)},)
    return lower(graph, (example,), shapes)


def batch_of(data: bytes, path: Path) -> int:
    from zaq_executorch.reading import read

    path.write_bytes(data)
    return read(path).batch


@pytest.mark.slow
def test_a_small_example_bounds_the_batch_by_15(
    converted: GraphModule, images: Tensor, tmp_path: Path
) -> None:
    """Used by `zaq_executorch.export.export`, whose example has the largest batch."""
    path = tmp_path / "net.pte"
    assert batch_of(lowered(converted, images[:4], most=64), path) == 15
    assert batch_of(lowered(converted, images.repeat(3, 1, 1, 1)[:20], most=64), path) == 64


@pytest.mark.slow
def test_a_largest_batch_of_16_is_a_constant(
    converted: GraphModule, images: Tensor, tmp_path: Path
) -> None:
    """Used by `zaq_executorch.export.export`, which asks for 17 then."""
    from zaq_executorch.reading import runner

    path, many = tmp_path / "net.pte", images.repeat(2, 1, 1, 1)
    assert batch_of(lowered(converted, many, most=16), path) == 16
    run = runner(path)
    assert run((many,))[0].shape == (16, 10)
    with pytest.raises(ValueError, match="ExecuTorch cannot run it"):
        run((many[:3],))


@pytest.mark.slow
def test_a_file_takes_inputs_as_the_example_lay_in_memory(tmp_path: Path) -> None:
    """And does not check. Used by `zaq_executorch.lowering.lower`, which makes it contiguous."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from zaq_executorch.reading import runner

    torch.manual_seed(0)
    model, x = nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 8, 8)
    last = x.to(memory_format=torch.channels_last)
    paths = tmp_path / "theirs.pte", tmp_path / "ours.pte"
    edge = to_edge_transform_and_lower(
        torch.export.export(model, (last,)), partitioner=[XnnpackPartitioner()]
    )
    paths[0].write_bytes(edge.to_executorch().buffer)
    paths[1].write_bytes(lowered(torch.export.export(model, (last,)).module(), last))
    theirs, ours = (runner(path)((x,))[0] for path in paths)
    assert (theirs - model(x)).abs().max() > 0.1
    torch.testing.assert_close(ours, model(x))


@pytest.mark.slow
def test_flatc_writes_a_graph_as_json(exported: Any) -> None:
    """Used by `zaq_executorch._compat.delegates`: names of fields, infinities, constants."""
    from zaq_executorch._compat import delegates, parse_program

    program, named = parse_program(Path(exported.path).read_bytes())
    parts = list(delegates(program, named))
    kinds = {node["xnode_union_type"] for delegate in parts for node in delegate.graph["xnodes"]}
    assert {"XNNConv2d", "XNNDepthwiseConv2d", "XNNFullyConnected"} <= kinds
    for delegate in parts:
        assert {"xnodes", "xvalues", "input_ids", "output_ids", "constant_data"} <= set(
            delegate.graph
        )
    bounds = [
        n["output_min_max"] for d in parts for n in d.graph["xnodes"] if "output_min_max" in n
    ]
    assert {"output_min": 0, "output_max": float("inf")} in bounds


@pytest.mark.slow
def test_importing_leaves_logging_alone() -> None:
    """Its partitioner calls logging.basicConfig. Used by `zaq_executorch._compat`."""
    code = (
        "import logging; a = list(logging.root.handlers), logging.root.level; import zaq_executorch"
        "; print(a == (list(logging.root.handlers), logging.root.level))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "True"


def stock() -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    config = get_symmetric_quantization_config(is_per_channel=True)
    return XNNPACKQuantizer().set_global(config)


def scales_of(quantizer: Any, model: nn.Module, x: Tensor) -> Tensor:
    prepared = prepare_pt2e(torch.export.export(model, (x,)).module(), quantizer)
    prepared(x)
    converted = convert_pt2e(prepared)
    (node,) = [n for n in converted.graph.nodes if "dequantize_per_channel" in str(n.target)]
    return converted.get_buffer(str(node.args[1].target))


@pytest.mark.slow
def test_its_quantizer_floors_scales_and_with_pwlq_does_not() -> None:
    """At 2^-12: small weights lose their codes."""
    import zaq_pt2e
    from zaq_plugin.pwlq import PWLQSpec, quantize

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(4, 8)
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    assert torch.all(scales_of(stock(), model, x) == 2.0**-12)
    scales = scales_of(zaq_pt2e.with_pwlq(stock(), PWLQSpec()), model, x)
    assert torch.equal(scales, quantize(model[0].weight.detach(), PWLQSpec()).scale)
    assert bool((scales < 2.0**-12).all())
