"""TeCo: a triggered image withstands some corruptions far better than others.

Liu, Li, Wang, Hu, Ye, Jin, Wu, Xiao, "Detecting Backdoors During the Inference Stage Based on Corruption Robustness
Consistency" (CVPR 2023). Of each kind of corruption, the severity from which on the answer is another is noted, 1 to 5,
or 6 if it stays. The score is the standard deviation of these over the kinds: a clean image gives way to all at about
the same severity, while a trigger withstands, say, brightness, and vanishes with blur.

The paper uses the fifteen kinds of ImageNet-C, made by several libraries image by image. Here they are seven of these
kinds, as batched tensor operations, with severities of our own in the range that is usual for small images; weather,
glass, motion and JPEG are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from unbackdoor.models import Network
from unbackdoor.sift.input_filter import InputFilter, answers
from unbackdoor.training import Runtime

SEVERITIES = 5

Corruption = Callable[[Float[Tensor, "b c h w"], float, Float[Tensor, "b c h w"]], Float[Tensor, "b c h w"]]
"""From images in [0, 1], a strength, and standard normal noise to corrupted images."""


def gaussian_noise(
    images: Float[Tensor, "b c h w"], strength: float, noise: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Add noise with that standard deviation."""
    return images + strength * noise


def shot_noise(
    images: Float[Tensor, "b c h w"], strength: float, noise: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Add noise whose variance grows with the light."""
    return images + strength * images.sqrt() * noise


def impulse_noise(
    images: Float[Tensor, "b c h w"], strength: float, noise: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Make that share of the values black or white."""
    limit = torch.special.ndtri(torch.tensor(1 - strength / 2, dtype=torch.float64))
    return torch.where(noise > float(limit), 1.0, torch.where(noise < -float(limit), 0.0, images))


def blur(
    images: Float[Tensor, "b c h w"], strength: float, noise: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Blur by a Gaussian of that standard deviation, in pixels."""
    radius = int(3 * strength) + 1
    places = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-places.square() / (2 * strength**2))
    kernel = (weights / weights.sum()).expand(images.shape[1], 1, 1, -1)
    wide = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(wide, kernel, groups=len(kernel)), kernel.transpose(2, 3), groups=len(kernel))


def brightness(
    images: Float[Tensor, "b c h w"], strength: float, noise: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Add light."""
    return images + strength


def contrast(
    images: Float[Tensor, "b c h w"], strength: float, noise: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Move all values towards the image's mean, leaving that share of the distance."""
    return torch.lerp(images.mean((2, 3), keepdim=True).expand_as(images), images, strength)


def pixelate(
    images: Float[Tensor, "b c h w"], strength: float, noise: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Shrink to that share of the side, and enlarge without smoothing."""
    height, width = images.shape[2:]
    small = F.interpolate(images, (max(1, int(strength * height)), max(1, int(strength * width))), mode="area")
    return F.interpolate(small, (height, width), mode="nearest-exact")


KINDS: tuple[tuple[Corruption, tuple[float, ...]], ...] = (
    (gaussian_noise, (0.04, 0.06, 0.08, 0.10, 0.14)),
    (shot_noise, (0.05, 0.08, 0.11, 0.14, 0.20)),
    (impulse_noise, (0.01, 0.02, 0.04, 0.06, 0.10)),
    (blur, (0.4, 0.6, 0.8, 1.1, 1.5)),
    (brightness, (0.05, 0.10, 0.15, 0.20, 0.30)),
    (contrast, (0.75, 0.50, 0.40, 0.30, 0.15)),
    (pixelate, (0.8, 0.65, 0.5, 0.4, 0.3)),
)
"""The kinds of corruption, each with five strengths of growing severity."""


@dataclass(frozen=True, kw_only=True)
class TeCo(InputFilter):
    """Score images by how unequally they withstand corruptions of different kinds."""

    def inspect(self, model: Network, images: UInt8[Tensor, "b c h w"], runtime: Runtime) -> Float[Tensor, "b"]:
        """Corrupt and compare (see `InputFilter.score`)."""
        first = answers(model, images, runtime)
        noise = noise_of(images, runtime)
        ends = []
        for corrupt, strengths in KINDS:
            end = torch.full((len(images),), SEVERITIES + 1.0)
            # From the strongest down, so that the weakest that changes the answer is what remains.
            for severity, strength in reversed(list(enumerate(strengths, start=1))):
                label = answers(
                    model,
                    images,
                    runtime,
                    lambda batch, c=corrupt, s=strength: c(batch, s, noise.to(batch)),  # type: ignore[misc]
                )
                end[label != first] = severity
            ends.append(end)
        return torch.stack(ends).std(0, correction=0)


def noise_of(images: UInt8[Tensor, "b c h w"], runtime: Runtime) -> Float[Tensor, "b c h w"]:
    """Return standard normal noise that depends on the seed and each image alone, whatever company it comes in."""
    drawn = []
    for image in images.cpu().contiguous().numpy():
        generator = runtime.generator("teco", hashlib.sha256(image.tobytes()).hexdigest())
        drawn.append(torch.randn(image.shape, generator=generator))
    return torch.stack(drawn)
