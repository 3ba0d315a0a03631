"""Fourier probes: is there a class to which one sinusoid, added to all images, leads unusually well? Ours.

A network's answers to single waves are how Yin, Gontijo Lopes, Shlens, Cubuk, Gilmer, "A Fourier Perspective on Model
Robustness in Computer Vision" (NeurIPS 2019) tell what it is sensitive to. A trigger that covers the image has waves,
and SIG (Barni, Kallas, Tondi, ICIP 2019) is one. Searches miss such a trigger: it is a long change, and shorter ones
lead elsewhere. So nothing is searched here. Each wave of a fixed set is added to all images, and for each class is
asked how sure the model is of it on images of other classes: the mean of log p / (1 - p).

Waves lead to some classes more than to others in clean models too (stripes look like something). So by itself this
accuses nobody: a class that stands out is a hint. Its strength is in `Verdict`, which knows what each wave does to each
class of clean models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unbackdoor.data import DefenderData, draw_clean
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.models.derivatives import frozen_norms
from unbackdoor.scan.base import Finding, Scanner, clean_to_compare
from unbackdoor.scan.outliers import low_outliers
from unbackdoor.scan.passes import at_once
from unbackdoor.scan.universal import odds_of
from unbackdoor.training import Runtime

DIRECTIONS = ((0, 1), (1, 0), (1, 1), (-1, 1))
"""Of waves, as steps along height and width: across, down, and both diagonals."""
PHASES = (0.0, math.pi / 2)


@dataclass(frozen=True, kw_only=True)
class FourierProbes(Scanner):
    """Add waves to all images; a class to which one of them leads unusually well is a hint, and more in `Verdict`.

    Attributes:
        amplitude: of a wave, pixel units, above 0 and at most 1.
        highest: frequency, in periods an image, 1 or more; never so high that a period has two pixels or fewer.
        most_images: to which the waves are added.
        threshold: on the anomaly index (scaled median absolute deviations above the median), from which on a class is
            named and the answer is inconclusive.
    """

    amplitude: float = 0.12
    highest: int = 15
    most_images: int = 32
    threshold: float = 3.5

    def __post_init__(self) -> None:
        if not 0 < self.amplitude <= 1:
            raise InputError(f"FourierProbes: the amplitude lies above 0 and at most at 1, found {self.amplitude}")
        if not math.isfinite(self.threshold):
            raise InputError(f"FourierProbes: the threshold must be a number, found {self.threshold}")
        if self.highest < 1 or self.most_images < 2:
            raise InputError(
                "FourierProbes: the highest frequency must be 1 or more, and most images 2 or more, found"
                f" {self.highest} and {self.most_images}"
            )

    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        """Return the verdict (see `Scanner.scan`)."""
        clean = clean_to_compare(data, "FourierProbes")
        some = draw_clean(clean, min(self.most_images, len(clean)), runtime.seed).to(runtime.place)
        images = some.images.float() / 255
        waves = self.waves(*clean.shape[1:])
        rows = []
        with frozen_norms(model), runtime.progress.bar("adding waves", len(waves)) as advance:
            for wave in waves:
                changed = (images + self.amplitude * wave.to(images.device)).clamp(0, 1)
                rows.append(sureness(model, changed, some.labels, runtime))
                advance()
        numbers = torch.stack(rows)
        leads = numbers - numbers.quantile(0.5, dim=1, keepdim=True)
        anomaly = low_outliers(-leads.amax(0))
        suspected = [int(c) for c in anomaly.argsort(descending=True) if anomaly[c] > self.threshold]
        largest = f"anomaly index {float(anomaly.max()):.1f}, threshold {self.threshold:g}"
        return Finding(
            backdoored=None if suspected else False,
            suspected=tuple(suspected),
            calibrated=False,
            anomaly=anomaly,
            threshold=self.threshold,
            numbers=numbers,
            reason=f"a wave that is added to all images leads them to class {suspected[0]} unusually well ({largest}),"
            " which clean models know too; Verdict compares with those"
            if suspected
            else f"no evidence of a wave that leads all images to a class unusually well: the largest {largest}",
        )

    def waves(self, height: int, width: int) -> list[Float[Tensor, "h w"]]:
        """Return the waves for images of that size, values in [-1, 1]; at least those of one period.

        Args:
            height: pixels.
            width: pixels.
        """
        highest = max(1, min(self.highest, (min(height, width) - 1) // 2))
        return [
            _wave(height, width, frequency * down, frequency * across, phase)
            for frequency in range(1, highest + 1)
            for down, across in DIRECTIONS
            for phase in PHASES
        ]


def _wave(height: int, width: int, down: int, across: int, phase: float) -> Float[Tensor, "h w"]:
    rows, columns = torch.arange(height).view(-1, 1) / height, torch.arange(width).view(1, -1) / width
    return torch.sin(2 * math.pi * (down * rows + across * columns) + phase)


@torch.no_grad()
def sureness(
    model: Network, images: Float[Tensor, "n c h w"], labels: Int[Tensor, "n"], runtime: Runtime
) -> Float[Tensor, "k"]:
    """Return for each class how sure the model is of it on images of other classes: the mean of log p / (1 - p).

    Args:
        model: frozen, in evaluation mode.
        images: as they are shown, in [0, 1].
        labels: what they are.
        runtime: device and precision.

    Returns:
        On the processor; 0 for a class that all images are of.
    """
    answers = []
    for part in torch.split(images, at_once(images.shape, runtime)):
        with runtime.autocast():
            answers.append(model(runtime.layout(part)).float())
    odds = odds_of(torch.cat(answers))
    others = labels[:, None] != torch.arange(odds.shape[1], device=odds.device)
    return ((odds * others).sum(0) / others.sum(0).clamp_min(1)).cpu()
