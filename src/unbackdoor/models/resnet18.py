"""ResNet18 for small images: the residual network with the activation after the addition.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), in the layout and with the parameter
names of kuangliu's CIFAR networks: a 3 x 3 stem without pooling, a shortcut of convolution and normalisation
where the shape changes. torchvision's `resnet18` is another network (7 x 7 stem, other names); its weights do
not fit here.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.models.shortcut import ShortcutConvolution
from unbackdoor.models.staged import Staged


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, added to a shortcut, then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(ShortcutConvolution(inputs, outputs, stride), nn.BatchNorm2d(outputs))

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o p q"]:
        """Return the block's output, which is not negative."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features)))))
        return F.relu(inner + self.shortcut(features))


class ResNet18(Staged):
    """A stem convolution, four layers of two residual blocks, average pooling and a linear layer.

    Args:
        channels: of an image.
        classes: number of logits.
        width: channels of the first layer; the last has eight times as many. The papers use 64.
    """

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _layer(width, width, 1)
        self.layer2 = _layer(width, 2 * width, 2)
        self.layer3 = _layer(2 * width, 4 * width, 2)
        self.layer4 = _layer(4 * width, 8 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(8 * width, classes)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the modules whose composition is the network, with their names, in order."""
        stem = [("conv1", self.conv1), ("bn1", self.bn1), ("relu", self.relu)]
        blocks = [
            (f"layer{i}.{j}", block)
            for i, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), start=1)
            for j, block in enumerate(layer)
        ]
        tail = [("avgpool", self.avgpool), ("flatten", self.flatten), ("linear", self.linear)]
        return [*stem, *blocks, *tail]


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))
