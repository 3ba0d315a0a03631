"""Frequency: which frequencies of an image a model's answers depend on.

Zeng, Park, Mao, Jia, "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective" (ICCV 2021), found that many
triggers leave traces at high frequencies, which natural images hardly have. Two views of it here, both of the
orthonormal discrete cosine transform (DCT) of each colour channel:

1. Bands are removed. Coefficients (u, v) of images of H x W fall into bands of equal width by their frequency
   r = sqrt(((u / (H - 1))^2 + (v / (W - 1))^2) / 2), from 0 (the mean colour) to 1, so that the bands add up to the
   image. Counted is how many answers change when a band is taken out.
2. The gradient. How much the answer's logit changes with each coefficient, as the mean of absolute values over images
   and channels: what the field calls a frequency saliency map (BackdoorBench draws it by a Fourier transform). As the
   transform is orthonormal, the gradient by the coefficients is the transform of the gradient by the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.inspect.base import Figure, Insight, Inspection, Material, Pictures
from unbackdoor.inspect.compared import CLEAN, SUSPECT, TRIGGERED, batches, drawn, models_of, samples_of, side_by_side
from unbackdoor.models import Network
from unbackdoor.spectrum import images_of, spectrum_of
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class Frequency(Inspection):
    """Which frequencies of clean and triggered images the answers depend on.

    Attributes:
        bands: of equal width, from the lowest to the highest frequency; 2 or more.
        images: of each kind at most, drawn by the seed; 1 or more.
    """

    title: ClassVar[str] = "Frequency saliency"

    bands: int = 8
    images: int = 500

    def __post_init__(self) -> None:
        if self.bands < 2 or self.images < 1:
            raise InputError(
                f"Frequency: it takes 2 bands or more and 1 image or more, found {self.bands} and {self.images}"
            )

    def look(self, model: Network, material: Material, runtime: Runtime, resume: Path | None) -> Insight:
        """Take out each band, and follow the gradient (see `Inspection.inspect`)."""
        samples = {
            kind: images.subset(drawn(len(images), self.images, runtime, "frequency"))
            for kind, images in samples_of(material).items()
        }
        measured: dict[str, Any] = {}
        spectra: dict[str, Float[Tensor, "h w"]] = {}
        figures: list[Figure | Pictures] = []
        for name, one in models_of(model, material, runtime).items():
            changed = {kind: changed_answers(one, images, self.bands, runtime) for kind, images in samples.items()}
            measured[name] = {kind: {"changed": shares.tolist()} for kind, shares in changed.items()}
            for kind, images in samples.items():
                spectra[f"{name}, {kind}"] = sensitivity(one, images, runtime)
            figures.append(self._figure(name, measured[name]))
        figures.append(_pictures(spectra))
        return Insight(
            headline=self._headline(measured[SUSPECT]),
            suspicious="Answers to triggered images that change when a band goes which answers to clean images hardly"
            " need: the trigger sits there. All answers need the lowest bands, which hold most of the image.",
            rows=self._rows(measured),
            figures=figures,
            measured=measured,
            details={"sensitivity": {name: spectrum.tolist() for name, spectrum in spectra.items()}},
        )

    def _ends(self, band: int) -> str:
        return f"{100 * band / self.bands:.3g} to {100 * (band + 1) / self.bands:.3g} %"

    def _headline(self, suspect: dict[str, Any]) -> str:
        clean = suspect[CLEAN]["changed"]
        if TRIGGERED not in suspect:
            most = max(range(1, self.bands), key=clean.__getitem__)
            return (
                f"Above the lowest band, the suspect's answers depend most on that from {self._ends(most)} of the"
                f" highest frequency: without it {100 * clean[most]:.0f} % change."
            )
        woken = suspect[TRIGGERED]["changed"]
        most = max(range(self.bands), key=lambda band: woken[band] - clean[band])
        if woken[most] <= clean[most]:
            return (
                "There is no band of frequencies that the suspect's answers to triggered images need more than those to"
                " clean ones."
            )
        return (
            f"Without the band from {self._ends(most)} of the highest frequency, {100 * woken[most]:.0f} % of the"
            f" suspect's answers to triggered images change, and {100 * clean[most]:.0f} % of those to clean ones."
        )

    def _rows(self, measured: dict[str, Any]) -> list[tuple[str, str]]:
        def told(kind: str, band: int) -> str:
            shares = {name: one[kind]["changed"][band] for name, one in measured.items()}
            return f"{kind} images: {side_by_side(shares, lambda share: f'{100 * share:.0f} %')}"

        return [
            (f"answers changed without {self._ends(band)}", "; ".join(told(kind, band) for kind in measured[SUSPECT]))
            for band in range(self.bands)
        ]

    def _figure(self, name: str, seen: dict[str, Any]) -> Figure:
        middles = [(band + 0.5) / self.bands for band in range(self.bands)]
        return Figure(
            title=f"Answers that change without a band of frequencies: {name}",
            explanation="From the coarsest structures at the left to the finest at the right; each point is the"
            " middle of a band that is taken out of the images.",
            marks="lines",
            series={kind: (middles, one["changed"]) for kind, one in seen.items()},
            x_title="frequency taken out, of the highest",
            y_title="share of answers that change",
            distinct=True,
            stands_out=TRIGGERED,
        )


def bands_of(height: int, width: int, count: int) -> Int[Tensor, "h w"]:
    """Return the number of the band that each coefficient belongs to, from the lowest frequency to the highest."""
    rows, columns = (torch.arange(side, dtype=torch.float64) / max(side - 1, 1) for side in (height, width))
    frequency = ((rows[:, None].square() + columns[None, :].square()) / 2).sqrt()
    return (frequency * count).long().clamp_max(count - 1)


@torch.no_grad()
def changed_answers(model: Network, images: ImageSet, bands: int, runtime: Runtime) -> Float[Tensor, "bands"]:
    """Return which share of the answers changes when each band is taken out of the images.

    Args:
        model: in evaluation mode, on the device.
        images: that it takes.
        bands: how many.
        runtime: device and precision.
    """
    changed = torch.zeros(bands)
    which = bands_of(*images.shape[1:], bands).to(runtime.place)
    parts = batches(images.images)
    with runtime.progress.bar("frequency bands", len(parts)) as advance, runtime.autocast():
        for part in parts:
            batch = runtime.layout(part).float() / 255
            with torch.autocast(runtime.place.type, enabled=False):
                spectrum = spectrum_of(batch)
                without = [images_of(spectrum * (which != band)) for band in range(bands)]
            answers = model(batch).argmax(1)
            # The pixels are not cut off at 0 and 1: that would bring the band back.
            changed += torch.stack([(model(runtime.layout(one)).argmax(1) != answers).sum() for one in without]).cpu()
            advance()
    return changed / len(images)


def sensitivity(model: Network, images: ImageSet, runtime: Runtime) -> Float[Tensor, "h w"]:
    """Return how much the answers' logits change with each coefficient, the mean absolute gradient; on the CPU.

    Args:
        model: in evaluation mode, on the device.
        images: that it takes.
        runtime: device.
    """
    total = torch.zeros(images.shape[1:])
    for part in batches(images.images):
        batch = (runtime.layout(part).float() / 255).requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(batch).max(1).values.sum(), batch)
        total += spectrum_of(gradient).abs().mean(1).sum(0).cpu()
    return total / len(images)


def _pictures(spectra: dict[str, Float[Tensor, "h w"]]) -> Pictures:
    return Pictures(
        title="How sensitive the answers are to each frequency",
        explanation="The coarsest structures are at the top left, finer ones to the right (across) and below (down)."
        " The brighter, the more the answer changes with the coefficient; white is the most of each picture.",
        pictures=[(name, shades(spectrum)[None]) for name, spectrum in spectra.items()],
    )


def shades(spectrum: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Return values of 0 or more as shares of the largest."""
    return spectrum / spectrum.max().clamp_min(1e-30)
