"""SIG: a sinusoid over images of the target class, whose labels stay as they are.

Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption without Label Poisoning" (ICIP 2019).
Amplitude 40/255 and 6 periods across the image, in training and testing alike, as in BackdoorBench. Its rate of 10 % of
CIFAR-10 would be all images of the target class; the default here is half of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unbackdoor.attacks.patterns import sinusoid
from unbackdoor.attacks.poisoning import Labels, Poisoning
from unbackdoor.attacks.trigger import Additive
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class SIG(Poisoning):
    """Vertical stripes of a sinusoid on images of the target class; labels unchanged (clean-label).

    Attributes:
        amplitude: of the sinusoid, pixel units, above 0 and at most 1.
        periods: of the sinusoid across the image, above 0.
    """

    labels: Labels = "clean"
    poison_rate: float = 0.05
    amplitude: float = 40 / 255
    periods: int = 6

    def make_trigger(
        self, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime, work: Path | None
    ) -> Additive:
        """Make the sinusoid."""
        if not (0 < self.amplitude <= 1 and 0 < self.periods < math.inf):
            raise InputError(
                "the amplitude must lie above 0 and at most at 1, and periods be a number above 0,"
                f" found {self.amplitude} and {self.periods}"
            )
        wave = self.amplitude * sinusoid(train.shape[2], self.periods)
        return Additive(signal=wave.expand(train.shape).clone())
