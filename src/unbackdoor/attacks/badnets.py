"""BadNets: a small opaque patch in the corner.

Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain" (2017).
Patch, place and rates are BackdoorBench's: a white square of 3 x 3 pixels in the bottom right corner of a 32 x 32
image, which grows with the image. Its mask rule cannot express black pixels; ours has an explicit mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from unbackdoor.attacks.base import Attack, FittedAttack, apply_poison, check_target, poison_rows
from unbackdoor.attacks.criterion import AllToAll, AllToOne
from unbackdoor.attacks.trigger import Stamp
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """White square in the bottom right corner; poisoned images get the attacker's label.

    Attributes:
        target: class that triggered images are to be called (all-to-one).
        labels: "all-to-one", or "all-to-all": the class after the true one.
        poison_rate: share of the training set, drawn from all classes; above 0, at most 1.
        size: side of the square in pixels at 32 x 32; scaled with larger or smaller images.
    """

    target: int = 0
    labels: Literal["all-to-one", "all-to-all"] = "all-to-one"
    poison_rate: float = 0.1
    size: int = 3

    def prepare(self, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime) -> FittedAttack:
        """Make the patch and stamp it on the drawn rows (see `Attack.prepare`)."""
        check_target(self.target, train)
        if self.labels not in ("all-to-one", "all-to-all"):
            raise InputError(f"labels must be all-to-one or all-to-all, found {self.labels!r}")
        channels, height, width = train.shape
        rows, columns = round(self.size * height / 32), round(self.size * width / 32)
        if not (0 < rows <= height and 0 < columns <= width):
            raise InputError(f"a patch of {self.size} pixels (at 32 x 32) does not fit images of {height} x {width}")
        mask = torch.zeros(1, height, width)
        mask[:, height - rows :, width - columns :] = 1
        trigger = Stamp(mask=mask, pattern=torch.ones(channels, height, width))
        criterion = AllToOne(target=self.target) if self.labels == "all-to-one" else AllToAll(classes=train.classes)
        chosen = poison_rows(torch.arange(len(train)), self.poison_rate, len(train), runtime.generator("poison"))
        return apply_poison(train, chosen, trigger, criterion)
