"""What each of two processes runs; a module of its own, so that spawned processes can import it."""

import os

import torch

from zaq_plugin.pwlq import PWLQSpec, fake_quantize


def weights(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def train(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(weights(4, 6))

        def forward(self, x):
            return torch.nn.functional.linear(x, fake_quantize(self.weight, PWLQSpec()))

    model = torch.nn.parallel.DistributedDataParallel(Layer())
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(rank))
    model(x).square().sum().backward()
    torch.save(model.module.weight.grad, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
