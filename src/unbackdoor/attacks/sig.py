"""SIG: a sinusoid over images of the target class, whose labels stay as they are.

Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption without Label Poisoning" (ICIP 2019).
Amplitude 40/255 and 6 periods across the image, in training and testing alike, as in BackdoorBench. Its rate of 10 % of
CIFAR-10 would be all images of the target class; the default here is half of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from unbackdoor.attacks.base import Attack, FittedAttack, apply_poison, check_target, poison_rows
from unbackdoor.attacks.criterion import AllToOne
from unbackdoor.attacks.trigger import Additive
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class SIG(Attack):
    """Vertical stripes of a sinusoid on images of the target class; labels unchanged (clean-label).

    Attributes:
        target: class whose images are poisoned, and that triggered images are to be called.
        poison_rate: share of the whole training set; at most the target class's share.
        amplitude: of the sinusoid, pixel units, above 0 and at most 1.
        periods: of the sinusoid across the image, above 0.
    """

    target: int = 0
    poison_rate: float = 0.05
    amplitude: float = 40 / 255
    periods: int = 6

    def prepare(self, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime) -> FittedAttack:
        """Make the sinusoid and add it to the drawn rows (see `Attack.prepare`)."""
        check_target(self.target, train)
        if not (0 < self.amplitude <= 1 and 0 < self.periods < math.inf):
            raise InputError(
                "the amplitude must lie above 0 and at most at 1, and periods be a number above 0,"
                f" found {self.amplitude} and {self.periods}"
            )
        width = train.shape[2]
        wave = self.amplitude * torch.sin(2 * math.pi * self.periods * torch.arange(width) / width)
        trigger = Additive(signal=wave.expand(train.shape).clone())
        candidates = (train.labels == self.target).nonzero().squeeze(1)
        chosen = poison_rows(candidates, self.poison_rate, len(train), runtime.generator("poison"))
        return apply_poison(train, chosen, trigger, AllToOne(target=self.target))
