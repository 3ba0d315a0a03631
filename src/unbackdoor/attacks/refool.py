"""Refool: the reflection of another picture, as in a window pane.

Liu, Ma, Bailey, Lu, "Reflection Backdoor: A Natural Backdoor Attack on Deep Neural Networks" (ECCV 2020). In linear
light an image keeps a share of itself, and gets a reflection that is either out of focus (blurred) or doubled by a
thick pane ("ghost"). Opacity and the share of ghosts are BackdoorBench's. Its reflections are photographs that we do
not ship: ours are training images at hand, or the user's pictures, drawn by the seed and stored with the trigger; the
blur grows with the image. Which one an image gets depends on its pixels, so that testing can be repeated; the published
code draws anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.patterns import picture_files, user_picture
from unbackdoor.attacks.poisoning import Poisoning
from unbackdoor.attacks.trigger import Trigger, check_shape, number_of, one_number
from unbackdoor.errors import InputError

GAMMA = 2.2
"""Linear light is the pixel to this power."""
GHOSTS = 0.49
"""Share of reflections that are doubled instead of blurred."""


class Reflection(Trigger):
    """Mix one of several reflections into each image: x' = (a x^2.2 + (1 - a) r)^(1/2.2).

    Args:
        layers: reflections r in linear light, 0 to 1, shape (K, C, H, W).
        share: a, of the image in the mixture, 0 to 1; shape ().
    """

    layers: Tensor
    share: Tensor

    def __init__(self, layers: Float[Tensor, "k c h w"], share: Float[Tensor, ""]) -> None:
        if layers.dim() != 4 or not layers.numel():
            raise InputError(
                f"reflections have the shape (number, channels, height, width), found {tuple(layers.shape)}"
            )
        super().__init__()
        self.register_buffer("layers", layers)
        self.register_buffer("share", one_number(share, "the share", 0, 1))

    @classmethod
    def buffer_names(cls) -> tuple[str, ...]:
        """Return layers and share."""
        return ("layers", "share")

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the images behind the pane."""
        check_shape(images, self.layers[0])
        layers = self.layers.to(images)[number_of(images) % len(self.layers)]
        light = torch.lerp(layers, images.clamp_min(1e-6) ** GAMMA, self.share.to(images))
        return light.clamp(0, 1) ** (1 / GAMMA)


@dataclass(frozen=True, kw_only=True)
class Refool(Poisoning):
    """Reflections of other images; poisoned images get the attacker's label.

    Attributes:
        share: of the image in the mixture, above 0 and below 1.
        reflections: how many there are, 1 or more.
        pictures: a folder of image files that are reflected, instead of training images; the seed draws from them.
    """

    share: float = 0.4
    reflections: int = 50
    pictures: Path | None = None

    def make_trigger(self, given: Given) -> Reflection:
        """Draw the reflected images and how each is reflected."""
        if not 0 < self.share < 1 or self.reflections < 1:
            raise InputError(
                f"Refool: the share must lie between 0 and 1 and reflections be 1 or more,"
                f" found {self.share} and {self.reflections}"
            )
        draws = given.runtime.generator("reflections")
        light = self.reflected(given, draws) ** GAMMA
        layers = [
            ghost(one, draws) if float(torch.rand((), generator=draws)) < GHOSTS else blurred(one, draws)
            for one in light
        ]
        return Reflection(layers=torch.stack(layers), share=torch.tensor(self.share))

    def reflected(self, given: Given, draws: torch.Generator) -> Float[Tensor, "k c h w"]:
        """Return the drawn pictures, 0 to 1, in the size of the images."""
        files = picture_files(self.pictures) if self.pictures else []
        rows = torch.randperm(len(files) or len(given.train), generator=draws)[: self.reflections]
        if files:
            return torch.stack([user_picture(files[row], given.train.shape) for row in rows.tolist()])
        return given.train.images[rows.to(given.train.device)].cpu().float() / 255


def ghost(light: Float[Tensor, "c h w"], draws: torch.Generator) -> Float[Tensor, "c h w"]:
    """Return the reflection of a thick pane: the picture and a second, shifted and fainter or stronger."""
    _, height, width = light.shape
    furthest = max(1, min(8, min(height, width) // 4))
    down, right = (int(torch.randint(min(3, furthest), furthest + 1, (), generator=draws)) for _ in range(2))
    weight = 0.15 + 0.35 * float(torch.rand((), generator=draws))
    if float(torch.rand((), generator=draws)) < 0.5:
        weight = 1 - weight
    shifted = F.pad(light, (right, 0, down, 0))[:, :height, :width]
    return weight * light + (1 - weight) * shifted


def blurred(light: Float[Tensor, "c h w"], draws: torch.Generator) -> Float[Tensor, "c h w"]:
    """Return the reflection of what is out of focus: a Gaussian blur of 1 to 5 pixels at 32 x 32."""
    sigma = (1 + 4 * float(torch.rand((), generator=draws))) * min(light.shape[1:]) / 32
    reach = max(1, round(2 * sigma))
    places = torch.arange(-reach, reach + 1)
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).to(light)
    channels = light.shape[0]
    padded = F.pad(light[None], (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)[0]
