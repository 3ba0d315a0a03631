"""PreActResNet18: the pre-activation ResNet that backdoor papers use on 32 x 32 images.

He et al., "Identity Mappings in Deep Residual Networks" (ECCV 2016), in the layout and with the parameter names of
kuangliu's CIFAR networks: the shortcut convolution sees the activated input, and there is no final normalisation before
the pooling.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.models.shortcut import ShortcutConvolution
from unbackdoor.models.staged import Staged


class PreActBlock(nn.Module):
    """Two 3 x 3 convolutions, each after batch normalisation and ReLU, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(ShortcutConvolution(inputs, outputs, stride))

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o p q"]:
        """Return the block's output."""
        activated = F.relu(self.bn1(features))
        shortcut = features if self.shortcut is None else self.shortcut(activated)
        inner: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return inner + shortcut


class PreActResNet18(Staged):
    """A stem convolution, four layers of two pre-activation blocks, average pooling and a linear layer.

    Args:
        channels: of an image.
        classes: number of logits.
        width: channels of the first layer; the last has eight times as many. The papers use 64.
    """

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.layer1 = _layer(width, width, 1)
        self.layer2 = _layer(width, 2 * width, 2)
        self.layer3 = _layer(2 * width, 4 * width, 2)
        self.layer4 = _layer(4 * width, 8 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(8 * width, classes)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the modules whose composition is the network, with their names, in order."""
        blocks = [
            (f"layer{i}.{j}", block)
            for i, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), start=1)
            for j, block in enumerate(layer)
        ]
        tail = [("avgpool", self.avgpool), ("flatten", self.flatten), ("linear", self.linear)]
        return [("conv1", self.conv1), *blocks, *tail]


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(PreActBlock(inputs, outputs, stride), PreActBlock(outputs, outputs, 1))
