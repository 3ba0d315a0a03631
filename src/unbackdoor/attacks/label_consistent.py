"""Label-consistent: corner patches on images of the target class that were made hard to recognise.

Turner, Tsipras, Madry, "Label-Consistent Backdoor Attacks" (2019). Images of the target class are moved away from
their class by projected gradient ascent on a clean model, so that the patch becomes the easiest thing to learn; labels
stay. At test time the patch alone is put on an image. Bound and patch are BackdoorBench's (16/255, a 3 x 3 checker in
all four corners; its first version forgot the corners). Its adversarial images are a download; ours are made here,
from a model of the attacker's. Chen, Wu, Wang (NeurIPS 2022) use `bound=8/255, steps=4`, and
Trap-and-Replace (NeurIPS 2022) `patch="grid"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.patterns import PATCHES, corners, pasted, patch, scaled
from unbackdoor.attacks.poisoning import Labels, Poisoning, TrainingStamp
from unbackdoor.attacks.preparation import clean_model
from unbackdoor.attacks.trigger import Stamp, Trigger, to_bytes
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.training import Runtime

SIZE = 3
"""Side of a corner patch in pixels at 32 x 32."""


@dataclass(frozen=True, kw_only=True)
class LabelConsistent(Poisoning):
    """Four corner patches on adversarial images of the target class; labels unchanged (clean-label).

    Attributes:
        bound: largest change of a pixel by the ascent, pixel units, 0 or more.
        steps: of the ascent, 0 or more.
        patch: in the lower right corner, mirrored into the others: "square", "grid" or "checker" (see `patterns`).
        opacity: of the patches, above 0 and at most 1.
        clean_model: checkpoint of a clean model to move away in; one is trained if none is named.
    """

    labels: Labels = "clean"
    poison_rate: float = 0.05
    searches: ClassVar[bool] = True
    # Since the clean model takes more epochs where there are few images.
    revision: ClassVar[int] = 1
    bound: float = 16 / 255
    steps: int = 10
    patch: Literal["square", "grid", "checker"] = "checker"
    opacity: float = 1.0
    clean_model: Path | None = None

    def make_trigger(self, given: Given) -> Stamp:
        """Make the patches."""
        if not (0 <= self.bound <= 1 and self.steps >= 0 and 0 < self.opacity <= 1):
            raise InputError(
                "LabelConsistent: the bound must lie between 0 and 1, steps be 0 or more and the opacity lie above 0"
                f" and at most at 1, found {self.bound}, {self.steps} and {self.opacity}"
            )
        if self.patch not in PATCHES:
            raise InputError(f"the patch is one of {', '.join(PATCHES)}, found {self.patch!r}")
        mask = corners(given.train.shape, SIZE)
        channels, height, width = given.train.shape
        rows, columns = scaled(SIZE, height), scaled(SIZE, width)
        lower_right = patch(self.patch, channels, rows, columns)
        pattern = pasted(given.train.shape, lower_right, height - rows, width - columns)
        # Mirrored from corner to corner.
        pattern = torch.stack([pattern.flip(dims) for dims in ((), (1,), (2,), (1, 2))]).amax(0)
        return Stamp(mask=self.opacity * mask, pattern=pattern)

    def training_stamp(self, trigger: Trigger, given: Given) -> TrainingStamp:
        """Return what moves images away from their class, and then puts the patches on."""
        if not self.steps or not self.bound:
            return super().training_stamp(trigger, given)
        model = clean_model(self.clean_model, given)

        def stamp(
            images: UInt8[Tensor, "p c h w"], labels: Int[Tensor, "p"], generator: torch.Generator
        ) -> UInt8[Tensor, "p c h w"]:
            moved = []
            batches = list(zip(torch.split(images, BATCH), torch.split(labels, BATCH)))
            with given.runtime.progress.bar("label-consistent images", len(batches)) as advance:
                for part, classes in batches:
                    far = move_away(model, part, classes, self.bound, self.steps, given.runtime, generator)
                    moved.append(far.cpu())
                    advance()
            return trigger.stamp(torch.cat(moved).to(images.device))

        return stamp


BATCH = 250


def move_away(
    model: Network,
    images: UInt8[Tensor, "b c h w"],
    labels: Int[Tensor, "b"],
    bound: float,
    steps: int,
    runtime: Runtime,
    generator: torch.Generator,
) -> UInt8[Tensor, "b c h w"]:
    """Return adversarial 8-bit images: ascent along the sign of the gradient of the cross-entropy, from a random start.

    Args:
        model: frozen.
        images: clean.
        labels: what the images are to be moved away from.
        bound: largest change of a pixel, pixel units.
        steps: each of 2.5 times the bound by the number of steps (Madry et al., ICLR 2018).
        runtime: where.
        generator: of the start.
    """
    clean: Float[Tensor, "b c h w"] = images.to(runtime.place).float() / 255
    labels = labels.to(runtime.place)
    delta = bound * (2 * torch.rand(clean.shape, generator=generator) - 1).to(runtime.place)
    for _ in range(steps):
        changed = runtime.layout((clean + delta).clamp(0, 1)).requires_grad_(True)
        with runtime.autocast():
            loss = F.cross_entropy(model(changed).float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, [changed])
        delta = (delta + 2.5 * bound / steps * gradient.sign()).clamp(-bound, bound)
    return to_bytes(clean + delta)
