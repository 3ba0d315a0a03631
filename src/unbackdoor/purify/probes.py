"""Probes: changes of images that lead a suspect to a class, and that should lose their power by a repair.

Nobody but the attacker has the trigger. A defender can look for other changes that lead the suspect to a class: a
trigger inverted for each class, and a universal perturbation for each class. Every network has such weak spots. One
with a backdoor often has a weaker one at the attacker's class, so a class that stands out among the others stands for
the backdoor. Not every backdoor shows so: see `standing_out`. Of many classes only those are probed to which a short
search leads best (see `scan.screening`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.data import DefenderData, ImageSet, draw_clean
from unbackdoor.models import Network
from unbackdoor.models.modes import evaluating
from unbackdoor.scan import NeuralCleanse
from unbackdoor.scan.screening import for_all, worth_searching
from unbackdoor.scan.universal import universal_perturbations
from unbackdoor.training import Runtime

MOST_CLASSES = 16
"""That are probed: all are searched in one batch, whose memory grows with them."""
MOST_IMAGES = 250
"""Held-out images that are changed for each class, of each kind of change."""
ROUNDS = 15
"""Of Neural Cleanse: triggers that work are found in a few, and smaller ones are not needed."""
RADIUS = 0.75 / 32
"""Of a universal perturbation, pixel units, as a root mean square over the places of the image."""
AHEAD = 0.3
"""By how much a universal perturbation must be more successful than the median of the classes to stand out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Probes:
    """Changes of images that lead the suspect to each class that was searched.

    Attributes:
        clean: held-out images in [0, 1].
        labels: their true classes.
        classes: that were searched, ascending.
        total: number of all classes.
        masks: of each class's inverted trigger, 0 to 1.
        patterns: of it.
        changes: each class's universal perturbation.
        flagged: the classes that the scanner calls suspected, most suspicious first.
        answers: the suspect's, to inverted triggers and to universal perturbations.
    """

    clean: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"]
    classes: Int[Tensor, "k"]
    total: int
    masks: Float[Tensor, "k 1 h w"]
    patterns: Float[Tensor, "k c h w"]
    changes: Float[Tensor, "k c h w"]
    flagged: tuple[int, ...]
    answers: Int[Tensor, "2 k n"]

    def images(self) -> Iterator[Float[Tensor, "n c h w"]]:
        """Yield the images with each class's inverted trigger, then those with each universal perturbation."""
        for mask, pattern in zip(self.masks, self.patterns):
            yield torch.lerp(self.clean, pattern, mask)
        for change in self.changes:
            yield (self.clean + change).clamp(0, 1)

    def to(self, place: torch.device) -> Probes:
        """Return the same probes on a device."""
        moved: dict[str, Any] = {name: one.to(place) for name, one in vars(self).items() if isinstance(one, Tensor)}
        return replace(self, **moved)


def find_probes(suspect: Network, kept: ImageSet, held: ImageSet, runtime: Runtime) -> Probes:
    """Look for the suspect's weak spots on some clean samples, and put them on others.

    Args:
        suspect: not changed.
        kept: clean samples that are searched on.
        held: clean samples that are changed.
        runtime: device, precision, seed; its budget is for the search.

    Raises:
        InputError: fewer than three classes, which the scanner cannot compare.
    """
    finding = NeuralCleanse(rounds=ROUNDS, most_classes=MOST_CLASSES).scan(suspect, DefenderData(clean=kept), runtime)
    model = runtime.settle(copy.deepcopy(suspect)).eval().requires_grad_(False)
    # As the scanner itself does, and so the same classes.
    classes = worth_searching(model, kept.in_canonical_order().to(runtime.place), MOST_CLASSES, runtime)
    radius = RADIUS * math.sqrt(kept.shape[1] * kept.shape[2])
    some = draw_clean(held, MOST_IMAGES, runtime.seed).to(runtime.place)
    clean = some.images.float() / 255
    triggers = [finding.reconstructions[int(number)] for number in classes]
    found = Probes(
        clean=clean,
        labels=some.labels,
        classes=classes,
        total=kept.classes,
        masks=torch.stack([one.mask for one in triggers]).to(clean),
        patterns=torch.stack([one.pattern for one in triggers]).to(clean),
        changes=universal_perturbations(model, kept.images, kept.classes, radius, runtime, only=classes),
        flagged=tuple(number for number in finding.suspected if number in classes),
        answers=some.labels.new_empty(0),
    )
    return replace(found, answers=answers_to(model, found, runtime))


def standing_out(probes: Probes) -> int | None:
    """Return the class whose probes stand out among the others, or None.

    It is the one whose universal perturbation is the most successful, if that is more than the median of all classes by
    `AHEAD`, those that were not searched counting as the least successful of the others; or else the first that the
    scanner suspects by the size of its trigger.
    """
    success = for_all(successes(probes.answers, probes)[1], probes.classes, probes.total)
    ahead = success - success.median()
    if float(ahead.max()) >= AHEAD:
        return int(ahead.argmax())
    return probes.flagged[0] if probes.flagged else None


def power(answers: Int[Tensor, "2 k n"], probes: Probes, suspected: int | None) -> float:
    """Return the success of the stronger probe of a class, and the mean over classes if none is suspected; 0 to 1.

    Args:
        answers: of a model, to all probes.
        probes: that it answered.
        suspected: the class; one that was searched.
    """
    stronger = successes(answers, probes).amax(0)
    return float(stronger.mean() if suspected is None else stronger[probes.classes == suspected])


def successes(answers: Int[Tensor, "2 k n"], probes: Probes) -> Float[Tensor, "2 k"]:
    """Return the share of images of other classes that each probe leads to its class."""
    classes = probes.classes.view(-1, 1)
    others = classes != probes.labels
    return ((answers == classes) & others).sum(2) / others.sum(1).clamp_min(1)


@torch.no_grad()
def answers_to(model: nn.Module, probes: Probes, runtime: Runtime) -> Int[Tensor, "2 k n"]:
    """Return the model's answers to all probes, in evaluation mode; its mode is restored."""
    found = []
    with evaluating(model):
        for images in probes.images():
            with runtime.autocast():
                found.append(model(runtime.layout(images)).argmax(1))
    return torch.stack(found).view(2, -1, len(probes.labels))
