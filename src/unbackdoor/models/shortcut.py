"""The 1 x 1 convolution of a residual shortcut."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FEW_CHANNELS = 16


class ShortcutConvolution(nn.Conv2d):
    """A 1 x 1 convolution with a stride and without bias.

    With fewer than 16 input channels the pixels that the stride skips are left out before the convolution, which is
    the same: PyTorch's kernel on a processor (2.13, oneDNN) for the weights' gradient of a strided one writes outside
    of its memory there, if the batch is odd and there are several threads.

    Args:
        inputs: channels.
        outputs: channels.
        stride: in both directions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=False)

    def forward(self, input: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o p q"]:
        """Return the shortcut's output."""
        if self.in_channels >= FEW_CHANNELS:
            return super().forward(input)
        rows, columns = self.stride
        return F.conv2d(input[:, :, ::rows, ::columns], self.weight)
