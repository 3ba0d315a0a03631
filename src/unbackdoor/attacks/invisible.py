"""Invisible: a trigger that a clean model reads as the target, small in the l2 norm or in the number of pixels.

Li, Xue, Zhao, Zhu, Zhang, "Invisible Backdoor Attacks on Deep Neural Networks via Steganography and Regularization"
(TDSC 2021), whose trigger files Trap-and-Replace (NeurIPS 2022) attacks with ("l2_inv", "l0_inv"). They excite neurons
of a clean model under a penalty on the norm; ours descends the target's cross-entropy in a ball of the norm: "l2" adds
a signal of a given length, "l0" covers a given number of pixels, those that moved furthest in a free search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.poisoning import Poisoning
from unbackdoor.attacks.preparation import Penalty, clean_model, descend
from unbackdoor.attacks.trigger import Additive, Stamp, Trigger
from unbackdoor.errors import InputError
from unbackdoor.models import Network

BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Invisible(Poisoning):
    """Small universal perturbation; poisoned images get the attacker's label.

    Attributes:
        norm: "l2" or "l0".
        length: of the l2 signal at 32 x 32, pixel units, above 0; scaled with the root of the number of pixels.
        pixels: that the l0 trigger covers at 32 x 32, 1 or more; scaled with the number of pixels.
        steps: of the search, 1 or more.
        clean_model: checkpoint of a clean model in which to search; one is trained if none is named.
    """

    searches: ClassVar[bool] = True
    # Since the clean model takes more epochs where there are few images.
    revision: ClassVar[int] = 1
    norm: Literal["l2", "l0"] = "l2"
    length: float = 2.0
    pixels: int = 10
    steps: int = 200
    clean_model: Path | None = None

    def make_trigger(self, given: Given) -> Trigger:
        """Search the signal, or the pixels and their colours."""
        if self.norm not in ("l2", "l0") or not 0 < self.length < math.inf or self.pixels < 1 or self.steps < 1:
            raise InputError(
                "Invisible: the norm is l2 or l0, the length positive, and pixels and steps are 1 or more,"
                f" found {self.norm!r}, {self.length}, {self.pixels} and {self.steps}"
            )
        model = clean_model(self.clean_model, given)
        _, height, width = given.train.shape
        area, nowhere = height * width / 32**2, torch.zeros(given.train.shape)
        if self.norm == "l2":
            return Additive(signal=self.search(model, given, nowhere, self.length * area**0.5))
        free = self.search(model, given, nowhere, None)
        furthest = free.abs().sum(0).flatten().topk(min(height * width, max(1, round(self.pixels * area)))).indices
        mask = torch.zeros(height * width).index_fill(0, furthest, 1).view(1, height, width)
        # Outside the pixels nothing counts, inside the search begins again from grey.
        colors = self.search(model, given, mask, None)
        return Stamp(mask=mask, pattern=(0.5 + colors).clamp(0, 1) * mask)

    def search(
        self,
        model: Network,
        given: Given,
        mask: Float[Tensor, "m h w"],
        length: float | None,
    ) -> Float[Tensor, "c h w"]:
        """Return the signal whose addition to any image lowers the target's cross-entropy most.

        Args:
            model: clean and frozen.
            given: images to search on, and where.
            mask: where it is 1 the signal is added to grey instead of the image.
            length: largest l2 norm; None bounds every value by 1/2.
        """
        train, runtime = given.train, given.runtime
        draws = runtime.generator("invisible", length is None, bool(mask.any()))
        signal = (0.01 * torch.randn(train.shape, generator=draws)).to(runtime.place).requires_grad_(True)
        covered = mask.to(runtime.place)
        somewhere = covered if bool(mask.any()) else torch.ones_like(covered)

        def changed(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
            return torch.lerp(images, torch.full_like(images, 0.5), covered) + signal * somewhere

        @torch.no_grad()
        def bound() -> None:
            if length is None:
                signal.clamp_(-0.5, 0.5)
            else:
                signal.mul_((length / signal.norm().clamp_min(1e-12)).clamp_max(1))

        name, penalty = "invisible trigger", self.penalty(model, given)
        descend(
            signal, changed, bound, model, train, self.target, self.steps, BATCH, 0.02, draws, runtime, name, penalty
        )
        return signal.detach().cpu()

    def penalty(self, model: Network, given: Given) -> Penalty | None:
        """Return what the search pays beside the cross-entropy: nothing, unless an attack says otherwise."""
        return None
