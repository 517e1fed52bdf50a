"""The operators under torch.library's own checks, torch.compile, torch.export and DDP."""

import socket

import pytest
import torch
import torch.multiprocessing as mp
from distributed_worker import train

from zaq_plugin.pwlq import PWLQSpec, UniformSpec, fake_quantize, quantize, solve_edges

SPECS = [
    PWLQSpec(),
    PWLQSpec(grid="float", symmetry="symmetric", breakpoints=2),
    PWLQSpec(overlapping=True, symmetry="symmetric"),
    UniformSpec(4, "asymmetric"),
]


def weights(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
@pytest.mark.parametrize("axis", [0, 1, None])
def test_opcheck(spec, axis):
    w = weights(4, 3, 2, 2)
    text = spec.to_json()
    edges = solve_edges(w, spec, axis)
    torch.library.opcheck(torch.ops.zaq.pwlq_solve, (w, text, axis))
    torch.library.opcheck(torch.ops.zaq.pwlq_quantize, (w, edges, text, axis))
    codes, codebook, scale = torch.ops.zaq.pwlq_quantize(w, edges, text, axis)
    torch.library.opcheck(torch.ops.zaq.pwlq_dequantize, (codes, codebook, scale, axis))
    learned = (w.clone().requires_grad_(), edges.clone().requires_grad_())
    torch.library.opcheck(torch.ops.zaq.pwlq_fake_quantize, (*learned, text, axis))
    torch.library.opcheck(
        torch.ops.zaq.pwlq_fake_quantize_backward, (torch.ones_like(w), w, edges, text, axis, True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_compile_fullgraph(spec):
    w = weights(8, 4, 3, 3).requires_grad_()
    edges = solve_edges(w.detach(), spec).requires_grad_()

    def function(values, points):
        return fake_quantize(values, spec, edges=points).square().sum()

    expected = torch.autograd.grad(function(w, edges), (w, edges))
    compiled = torch.compile(function, fullgraph=True)
    actual = torch.autograd.grad(compiled(w, edges), (w, edges))
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-4, atol=1e-5)

    solved = torch.compile(lambda values: fake_quantize(values, spec), fullgraph=True)
    assert torch.equal(solved(w.detach()), fake_quantize(w.detach(), spec))


def test_export():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(weights(8, 4, 3, 3))

        def forward(self, x):
            return torch.nn.functional.conv2d(x, fake_quantize(self.weight, PWLQSpec()))

    layer, x = Layer(), weights(1, 4, 6, 6)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


def test_dequantize_survives_export_save_and_load(tmp_path):
    q = quantize(weights(8, 4, 3, 3), PWLQSpec())

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("codes", "codebook", "scale"):
                self.register_buffer(name, getattr(q, name))

        def forward(self, x):
            w = torch.ops.zaq.pwlq_dequantize(self.codes, self.codebook, self.scale, 0)
            return torch.nn.functional.conv2d(x, w)

    layer, x = Layer(), weights(1, 4, 6, 6)
    torch.export.save(torch.export.export(layer, (x,)), tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    assert torch.equal(loaded(x), layer(x))


@pytest.mark.slow
def test_distributed_gradients_are_averaged(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(train, (port, str(tmp_path)), nprocs=2)
    grads = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(grads[0], grads[1])
    expected = []
    for rank in range(2):
        w = weights(4, 6).requires_grad_()
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(rank))
        torch.nn.functional.linear(x, fake_quantize(w, PWLQSpec())).square().sum().backward()
        expected.append(w.grad)
    torch.testing.assert_close(grads[0], (expected[0] + expected[1]) / 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
def test_cuda_equals_cpu(spec):
    w = weights(16, 8, 3, 3)
    host, device = quantize(w, spec), quantize(w.cuda(), spec)
    # Sums differ in their last bits, and so may a search's choice between two equally good edges.
    errors = [(q.dequantize().cpu() - w).square().sum((1, 2, 3)) for q in (host, device)]
    torch.testing.assert_close(errors[1], errors[0], rtol=0.02, atol=0)
    edges = solve_edges(w, spec)
    host, device = quantize(w, spec, edges=edges), quantize(w.cuda(), spec, edges=edges.cuda())
    near = (host.dequantize() - device.dequantize().cpu()).abs()
    assert (near > 1e-6).float().mean() < 1e-3
    values = w.cuda().requires_grad_()
    learned = edges.cuda().requires_grad_()
    fake_quantize(values, spec, edges=learned).square().sum().backward()
    on_host, on_edges = w.clone().requires_grad_(), edges.clone().requires_grad_()
    fake_quantize(on_host, spec, edges=on_edges).square().sum().backward()
    torch.testing.assert_close(values.grad.cpu(), on_host.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(learned.grad.cpu(), on_edges.grad, rtol=1e-3, atol=1e-3)
