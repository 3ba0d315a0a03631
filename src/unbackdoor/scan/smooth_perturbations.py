"""Smooth perturbations as a scanner: is there a class to which one smooth change leads all images unusually well? Ours.

As `UniversalPerturbations`, but a change has the lowest frequencies of the discrete cosine transform alone. What
leads all images of a clean model to a class is mostly of high frequencies, and is often a shorter way there than a
trigger that covers the image, which stays hidden. Among smooth changes, which do little to a clean model, such a
trigger stands out if it is smooth itself, and so does what a small patch or an encoder's residual has of low
frequencies. Changes may be longer for that.
"""

from __future__ import annotations

from dataclasses import dataclass

from unbackdoor.errors import InputError
from unbackdoor.scan.universal_perturbations import UniversalPerturbations


@dataclass(frozen=True, kw_only=True)
class SmoothPerturbations(UniversalPerturbations):
    """Look for one smooth change of all images towards each class; one that works unusually well is evidence.

    Attributes:
        radius: largest length of a change, pixel units, as a root mean square over the places of the image.
        frequencies: along each side that a change has, the lowest ones, 1 or more.
        steps: of the search, 1 or more.
        batch_size: images a class and step.
        most_classes: that are searched; if there are more, those to which a few steps lead best.
        threshold: on the anomaly index (scaled median absolute deviations above the median).
    """

    radius: float = 0.1
    frequencies: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frequencies < 1:
            raise InputError(f"SmoothPerturbations: frequencies must be 1 or more, found {self.frequencies}")

    @property
    def lowest(self) -> int | None:
        """How many of the lowest frequencies along each side a change has."""
        return self.frequencies
