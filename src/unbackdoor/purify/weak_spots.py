"""What a repair took out, and what it left in: changes of images that lead some models to a class, others not. Ours.

Nobody but the attacker has the trigger. Every network has universal perturbations, one with a backdoor also such as
resemble its trigger, and they cannot be told apart in the suspect alone, unless the trigger is small. A change that
moves the suspect and not its repair is of what the repair took out. If it moves another repair as the suspect, then
that one has left it in. A repair need not have left in what was found so, and yet may have left in more: that is sought
by what moves the suspect and the repair, and not another repair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models.modes import evaluating
from unbackdoor.scan.passes import at_once
from unbackdoor.scan.universal import universal_perturbations
from unbackdoor.training import Runtime

RADIUS = 0.035
"""Of a change, pixel units, as a root mean square over the places of the image: so short that few lead most images
anywhere, but to a class with a backdoor that takes little."""
LONGER = 2 / 32
"""Of the same change made longer, which leads most images to any class: triggers that change whole images, as SIG's and
Blended's, are longer still."""
UNLIKELY = 0.01
"""Probability of a class below which it is nothing to a repaired model."""
STEPS, IMAGES = 20, 32
"""Of the search: steps, and images a class and step."""


class Difference(nn.Module):
    """Log probabilities of the model that is the least sure of a class less those of another, as logits.

    The other is, for each class, that of several which is the least sure of it too. Probabilities below `UNLIKELY`
    count as that there: otherwise it would be enough to make it surer and surer of another class.

    Args:
        moved: images to logits; all are to be led to a class.
        unmoved: images to logits of the same classes; one of them at least is not to be.
    """

    def __init__(self, moved: Sequence[nn.Module], unmoved: Sequence[nn.Module]) -> None:
        super().__init__()
        self.moved, self.unmoved = nn.ModuleList(moved), nn.ModuleList(unmoved)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return the differences."""
        moved, unmoved = (
            torch.stack([model(images).float().log_softmax(1) for model in models]).amin(0)
            for models in (self.moved, self.unmoved)
        )
        return moved - unmoved.clamp_min(math.log(UNLIKELY))


def weak_spots(
    moved: Sequence[nn.Module],
    unmoved: Sequence[nn.Module],
    clean: ImageSet,
    classes: Int[Tensor, "k"],
    runtime: Runtime,
) -> Float[Tensor, "k c h w"]:
    """Return for each class one change of all images that leads some models there, and one of the others not.

    As far as one was found: where the models hardly differ, it moves hardly anything. What the suspect does and its
    repair not is what the repair took out; what the suspect and a repair do and another repair not, is what the one has
    left in and the other took out.

    Args:
        moved: frozen, in evaluation mode, on the runtime's device.
        unmoved: likewise.
        clean: what is searched on.
        classes: that are sought.
        runtime: device, precision and seed.
    """
    return universal_perturbations(
        Difference(moved, unmoved),
        clean.images,
        clean.classes,
        RADIUS * math.sqrt(clean.shape[1] * clean.shape[2]),
        runtime,
        steps=STEPS,
        batch_size=IMAGES,
        only=classes,
    )


def longer(spots: Float[Tensor, "k c h w"]) -> Float[Tensor, "k c h w"]:
    """Return changes of length `RADIUS` at the length `LONGER`."""
    return spots * (LONGER / RADIUS)


@torch.no_grad()
def successes(
    model: nn.Module, clean: ImageSet, changes: Float[Tensor, "k c h w"], classes: Int[Tensor, "k"], runtime: Runtime
) -> Float[Tensor, "k"]:
    """Return the share of images of other classes that each change leads a model to its class, 0 to 1.

    Args:
        model: on the runtime's device; its mode is restored.
        clean: what is changed, on the runtime's device.
        changes: pixel units.
        classes: of the changes.
        runtime: device and precision.
    """
    images = clean.images.float() / 255
    found = []
    with evaluating(model), runtime.autocast():
        for change, number in zip(changes, classes):
            others = images[clean.labels != number]
            # In parts, so that large images do not fill the memory.
            parts = torch.split((others + change).clamp(0, 1), at_once(clean.shape, runtime))
            led = torch.stack([(model(runtime.layout(part)).argmax(1) == number).sum() for part in parts])
            found.append(led.sum() / max(1, len(others)))
    return torch.stack(found)
