"""Blended: a faint picture over the whole image.

Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning" (2017). Of the
paper's two kinds of pattern this is the random one: every pixel of the picture is uniform noise, fixed by the seed.
The opacity is BackdoorBench's, in training and testing alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from unbackdoor.attacks.base import Attack, FittedAttack, apply_poison, check_target, poison_rows
from unbackdoor.attacks.criterion import AllToOne
from unbackdoor.attacks.trigger import Stamp
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class Blended(Attack):
    """Random picture mixed into the whole image; poisoned images get the attacker's label.

    Attributes:
        target: class that triggered images are to be called.
        poison_rate: share of the training set, drawn from all classes; above 0, at most 1.
        alpha: opacity of the picture, above 0 and at most 1.
    """

    target: int = 0
    poison_rate: float = 0.1
    alpha: float = 0.2

    def prepare(self, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime) -> FittedAttack:
        """Draw the picture and blend it into the drawn rows (see `Attack.prepare`)."""
        check_target(self.target, train)
        if not 0 < self.alpha <= 1:
            raise InputError(f"alpha must lie above 0 and at most at 1, found {self.alpha}")
        _, height, width = train.shape
        picture = torch.rand(train.shape, generator=runtime.generator("blended picture"))
        trigger = Stamp(mask=torch.full((1, height, width), self.alpha), pattern=picture)
        chosen = poison_rows(torch.arange(len(train)), self.poison_rate, len(train), runtime.generator("poison"))
        return apply_poison(train, chosen, trigger, AllToOne(target=self.target))
