"""`Decoder`: from a stem's features back to the image."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.models.modes import evaluating
from unbackdoor.secure.base import Part

NARROWEST = 8
"""Channels, at least, between two layers."""


class Decoder(Part):
    """Transposed convolutions that double the side until it is the image's, with ReLU between and a sigmoid at the end.

    Where the stem keeps the side, one convolution takes their place. What goes beyond the image is cut off at the lower
    and right edges, where the stem's strides put what they round up.

    Args:
        at: stage of the network whose input the features are.
        widths: channels of the features, between the layers, and of the image.
        doubles: whether the layers double the side; if not, there is one layer.
        size: height and width of the image.
    """

    def __init__(self, at: str, widths: tuple[int, ...], doubles: bool, size: tuple[int, int]) -> None:
        super().__init__()
        self.at = at
        self.size = size
        layers: list[nn.Module] = []
        doubling, keeping = partial(nn.ConvTranspose2d, kernel_size=4, stride=2), partial(nn.Conv2d, kernel_size=3)
        for inputs, outputs in itertools.pairwise(widths):
            layers += [(doubling if doubles else keeping)(inputs, outputs, padding=1), nn.ReLU()]
        layers[-1] = nn.Sigmoid()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Float[Tensor, "b f p q"]) -> Float[Tensor, "b c h w"]:
        """Return the images, in [0, 1]."""
        height, width = self.size
        images: Tensor = self.layers(features)
        return images[..., :height, :width]

    def facts(self) -> dict[str, Any]:
        """Return the stage."""
        return {"at": self.at}


@torch.no_grad()
def features_shape(network: Network, at: str) -> tuple[int, ...]:
    """Return the shape of the features of one image where the network is cut."""
    stem, _ = network.split(at)
    device = next(network.parameters()).device
    with evaluating(network):
        features: Tensor = stem(torch.zeros(1, *network.description.image_shape, device=device))
    return tuple(features.shape[1:])


def decoder_for(at: str, features: tuple[int, ...], image: tuple[int, int, int], seed: int) -> Decoder:
    """Return an untrained decoder; the published one where 64 x 8 x 8 features are to become 3 x 32 x 32 images.

    Args:
        at: see `Decoder`.
        features: shape of the stem's output for one image.
        image: channels, height and width.
        seed: the weights depend on this alone.

    Raises:
        InputError: the features are no maps.
    """
    if len(features) != 3:
        raise InputError(
            f"no image can be reconstructed from features of shape {features}; let the head begin earlier, before the"
            " network pools its maps"
        )
    channels, height, width = image
    doublings = 0
    while features[1] << doublings < height or features[2] << doublings < width:
        doublings += 1
    between = [max(NARROWEST, features[0] >> step) for step in range(1, doublings)]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Decoder(at, (features[0], *between, channels), doublings > 0, (height, width))
