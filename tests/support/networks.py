"""Networks that the tests of several hosts share."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions, the second depthwise if asked for, a strided shortcut and a sum."""

    def __init__(self, inputs: int, outputs: int, depthwise: bool) -> None:
        super().__init__()
        groups = outputs if depthwise else 1
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.short(x))


class Net(nn.Module):
    """A small residual network of five layers, with everything that conversion has to fold."""

    def __init__(self, classes: int, depthwise: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.block = Block(8, 16, depthwise)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.block(self.stem(x))).flatten(1))


def perturb(model: nn.Module) -> nn.Module:
    """BatchNorm as after training, so that folding has something to do; evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def random_timm_model(name: str) -> tuple[nn.Module, Tensor]:
    """One of timm's models with random weights and perturbed BatchNorm, and two small images."""
    import timm

    torch.manual_seed(0)
    options = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model, torch.randn(2, 3, 32, 32)
