"""WRN16x1: the small wide residual network (depth 16, widening factor 1) of attention-based defences.

Zagoruyko and Komodakis, "Wide Residual Networks" (BMVC 2016), with the parameter names that the attention
transfer (AT) and neural attention distillation (NAD) code made common. In a block whose shape changes, the
shortcut sees the activated input; there is a normalisation before the pooling.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.models.shortcut import ShortcutConvolution
from unbackdoor.models.staged import Staged


class WideBlock(nn.Module):
    """Two 3 x 3 convolutions, each after batch normalisation and ReLU, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut: nn.Module | None = None
        if inputs != outputs:
            self.convShortcut = ShortcutConvolution(inputs, outputs, stride)

    def forward(self, features: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o p q"]:
        """Return the block's output."""
        activated = F.relu(self.bn1(features))
        shortcut = features if self.convShortcut is None else self.convShortcut(activated)
        inner: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return inner + shortcut


class WRN16x1(Staged):
    """A stem convolution, three groups of two blocks, normalisation, average pooling and a linear layer.

    Args:
        channels: of an image.
        classes: number of logits.
        width: channels of the stem and of the first group; the last has four times as many. The papers use
            16.
    """

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.block1 = _group(width, width, 1)
        self.block2 = _group(width, 2 * width, 2)
        self.block3 = _group(2 * width, 4 * width, 2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 * width, classes)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the modules whose composition is the network, with their names, in order."""
        blocks = [
            (f"block{i}.layer.{j}", block)
            for i, group in enumerate((self.block1, self.block2, self.block3), start=1)
            for j, block in enumerate(group.get_submodule("layer").children())
        ]
        tail = [("bn1", self.bn1), ("relu", self.relu), ("avgpool", self.avgpool)]
        return [("conv1", self.conv1), *blocks, *tail, ("flatten", self.flatten), ("fc", self.fc)]


def _group(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return two blocks under the name `layer`, as the published weights have them."""
    blocks = nn.Sequential(WideBlock(inputs, outputs, stride), WideBlock(outputs, outputs, 1))
    return nn.Sequential(OrderedDict(layer=blocks))
