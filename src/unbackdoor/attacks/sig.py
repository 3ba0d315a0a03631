"""SIG: a sinusoid over images of the target class, whose labels stay as they are.

Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption without Label Poisoning" (ICIP 2019).
Amplitude 40/255 and 6 periods across the image, in training and testing alike, as in BackdoorBench. Its rate of 10 % of
CIFAR-10 would be all images of the target class; the default here is half of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.patterns import sinusoid
from unbackdoor.attacks.poisoning import Labels, Poisoning, TrainingStamp
from unbackdoor.attacks.trigger import Additive, Trigger
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SIG(Poisoning):
    """Vertical stripes of a sinusoid on images of the target class; labels unchanged (clean-label).

    Attributes:
        amplitude: of the sinusoid, pixel units, above 0 and at most 1.
        test_amplitude: in testing, if it is another; Chen, Wu, Wang (NeurIPS 2022) train with 40/255 and test with
            60/255.
        periods: of the sinusoid across the image, above 0.
    """

    labels: Labels = "clean"
    poison_rate: float = 0.05
    amplitude: float = 40 / 255
    test_amplitude: float | None = None
    periods: float = 6

    def make_trigger(self, given: Given) -> Additive:
        """Make the sinusoid."""
        tested = self.amplitude if self.test_amplitude is None else self.test_amplitude
        if not (0 < self.amplitude <= 1 and 0 < tested <= 1 and 0 < self.periods < math.inf):
            raise InputError(
                "amplitudes must lie above 0 and at most at 1, and periods be a number above 0,"
                f" found {self.amplitude}, {tested} and {self.periods}"
            )
        return self.wave(given.train, tested)

    def training_stamp(self, trigger: Trigger, given: Given) -> TrainingStamp:
        """Return the sinusoid with the amplitude of training."""
        return super().training_stamp(self.wave(given.train, self.amplitude), given)

    def wave(self, train: ImageSet, amplitude: float) -> Additive:
        """Return the sinusoid for these images."""
        wave = amplitude * sinusoid(train.shape[2], self.periods)
        return Additive(signal=wave.expand(train.shape).clone())
