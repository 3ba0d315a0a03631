"""AdaptiveTrap: an invisible trigger that brings the stem's features to those of the target, against Trap-and-Replace.

Trap-and-Replace (Wang, Hong, Zhang, Zhou, Wang, NeurIPS 2022) keeps the stem and trains a new head on clean samples.
Its appendix has an adaptive attack whose construction is not known to us, and there is no code of it. This one is our
own design: the trigger of `Invisible` is searched under one more term, by which triggered images come to look, to the
stem of a clean model, like images of the target class, so that a head that never saw the trigger is fooled as well:

    CE(f(x'), t) + weight ||stem(x') - m||^2 / s       m: mean features of the target class
                                                       s: mean of ||stem(x) - m||^2 over clean images
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.attacks.base import Given, check_target
from unbackdoor.attacks.invisible import Invisible
from unbackdoor.attacks.preparation import Penalty
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.training import Runtime

SEEN = 2000
"""Images, at most, from which a mean is taken."""
BATCH = 500


@dataclass(frozen=True, kw_only=True)
class AdaptiveTrap(Invisible):
    """Invisible trigger whose features are the target's; poisoned images get the attacker's label.

    Attributes:
        weight: of the distance between the stem's features and the target's mean, 0 or more; 1: what a clean image
            pays on average.
        head: stage at which the head begins, as in TrapAndReplace; if empty, the last one with a convolution.
    """

    weight: float = 1.0
    head: str = ""

    def penalty(self, model: Network, given: Given) -> Penalty:
        """Return the distance of features (see `Invisible.penalty`)."""
        if not 0 <= self.weight < math.inf:
            raise InputError(f"AdaptiveTrap: the weight must be a number of 0 or more, found {self.weight}")
        train, runtime = given.train, given.runtime
        check_target(self.target, train)
        stem, _ = model.split(self.head or model.last_block())
        rows = torch.randperm(len(train), generator=runtime.generator("stem features"))
        of_target = rows[train.labels.cpu()[rows] == self.target]
        if not len(of_target):
            raise InputError(f"AdaptiveTrap: {train.name} has no image of class {self.target}, whose features it needs")
        mean = features_of(stem, train.subset(of_target[:SEEN]), runtime).mean(0)
        usual = squared_distance(features_of(stem, train.subset(rows[:SEEN]), runtime), mean).clamp_min(1e-12)

        def penalty(images: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
            return self.weight * squared_distance(stem(images).float(), mean) / usual

        return penalty


def squared_distance(features: Float[Tensor, "b ..."], mean: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Return the squared distance of features from a mean, averaged over the images."""
    return (features - mean).square().flatten(1).sum(1).mean()


@torch.no_grad()
def features_of(stem: torch.nn.Module, images: ImageSet, runtime: Runtime) -> Float[Tensor, "n ..."]:
    """Return what a frozen stem makes of all images."""
    features = []
    for part in torch.split(images.images, BATCH):
        with runtime.autocast():
            features.append(stem(runtime.layout(part).float() / 255).float())
    return torch.cat(features)
