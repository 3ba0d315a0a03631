"""Plugs: small layers that are put into a finished network, and change nothing until they are trained.

The kinds are those of the published code of NPD (Zhu et al., "Neural Polarizer", NeurIPS 2023), by its names. Its
"lightconv" is left out: it is "convbn" under another name.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

PlugKind = Literal["convbn", "onlyconv", "twoconv", "linear", "linear_light", "mlp"]
KINDS: tuple[str, ...] = get_args(PlugKind)
SIZED = frozenset({"linear", "mlp"})
"""Kinds with a weight for every place of the features, whose number they must know."""


class IdentityConvolution(nn.Conv2d):
    """A 1 x 1 convolution without bias that starts as the identity; it draws no random numbers."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1, bias=False)

    def reset_parameters(self) -> None:
        """Set the weights to the identity."""
        with torch.no_grad():
            self.weight.copy_(torch.eye(self.out_channels)[:, :, None, None])


class Scale(nn.Module):
    """Multiply by a weight and add a bias, one of each per channel and place; a size of 1 x 1 shares it.

    Args:
        channels: of the features.
        size: height and width of the features, or 1 x 1.
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, *size))
        self.bias = nn.Parameter(torch.zeros(1, channels, *size))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the scaled features."""
        return features * self.weight + self.bias


class Plug(nn.Module):
    """A layer from features to features of the same shape.

    At its start it returns what it gets, but for the 1e-5 that batch normalisation adds to the variance, and for
    "mlp", which sets negative features to 0. With `residual` its start is 0 plus the features, so the same.

    Args:
        kind: of the layers inside.
        channels: of the features.
        channels_last: whether the channels are the last dimension, as a linear layer takes them, instead of the second.
        residual: whether the features are added to what the layers make of them.
        size: height and width of the features; for sized kinds only. Of features whose channels come last, the
            number of places and 1.
    """

    def __init__(
        self, kind: str, channels: int, *, channels_last: bool, residual: bool, size: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_layers(kind, channels, size or (1, 1)))
        self.channels_last = channels_last
        self.residual = residual
        if residual:
            last = self.layers[-1]
            assert isinstance(last.weight, Tensor)
            nn.init.zeros_(last.weight)

    def forward(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the changed features."""
        if self.channels_last:
            rows = features.reshape(len(features), -1, features.shape[-1])
            maps = self.layers(rows.transpose(1, 2).unsqueeze(-1))
            changed = maps.squeeze(-1).transpose(1, 2).reshape(features.shape)
        else:
            changed = self.layers(features)
        result: Tensor = changed + features if self.residual else changed
        return result


def _layers(kind: str, channels: int, size: tuple[int, int]) -> list[nn.Module]:
    match kind:
        case "convbn":
            return [IdentityConvolution(channels), nn.BatchNorm2d(channels)]
        case "onlyconv":
            return [IdentityConvolution(channels)]
        case "twoconv":
            return _layers("convbn", channels, size) + _layers("convbn", channels, size)
        case "linear":
            return [Scale(channels, size)]
        case "linear_light":
            return [Scale(channels, (1, 1))]
        case "mlp":
            return [Scale(channels, size), nn.ReLU(), Scale(channels, size)]
    raise ValueError(kind)
