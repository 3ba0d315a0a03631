"""FCT: poisoned images are those whose features move most when the image is turned and shifted.

Chen, Wu, Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples" (NeurIPS 2022), the metric
FCT and its module SD. A model of the poisoned data is fine-tuned so that the mean features of its classes point apart,

    L_intra = mean over the K x K matrix of cosines between mean features of classes, its diagonal set to 0,

and each row is then scored by how far a random rotation and shift tau moves its features phi,

    Delta(x) = mean over the features of (phi(x) - phi(tau(x)))^2.

The rows with the lowest fifth are held clean, those with the highest twentieth poisoned: always, also in clean data.

Three things differ from the published code. The loss leaves the features' scale free, and fine-tuning can shrink them
to nothing, which users of that code met; features are divided by their norm before they are compared, which no
shrinking changes, and those of norm 0 are counted. Delta is the mean over several draws of tau, as one draw ranks
noisily. The split is made once, from the scores that are reported; the published code draws tau anew between threshold
and split.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.data.augment import Augmentation, Rotate, Translate
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.sift.base import Sifter, Suspicion, check_share, extremes
from unbackdoor.sift.observed import Observed, feeding, run_over
from unbackdoor.training import Batch, Hook, Recipe, Runtime, fit, stage

TURN = Augmentation((Rotate(degrees=180.0), Translate(fraction=0.2)))
"""tau of the paper: any angle, and up to a fifth of the side in both directions."""

LEAST = 1e-6
"""Norm of a feature vector below which it counts as 0."""


@dataclass(frozen=True, kw_only=True)
class FCT(Sifter):
    """Score rows by how far turning and shifting the image moves its features.

    Attributes:
        epochs: of fine-tuning that pushes the classes' mean features apart; 0 leaves the model as it is.
        batch_size: images a step of it.
        learning_rate: of its SGD, constant.
        draws: of rotation and shift, over which a row's score is the mean; 1 or more.
        clean_share: of the rows with the lowest scores, held clean.
        poisoned_share: of the rows with the highest scores, held poisoned.
    """

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.01
    draws: int = 6
    clean_share: float = 0.20
    poisoned_share: float = 0.05

    def __post_init__(self) -> None:
        check_share("FCT", clean_share=self.clean_share, poisoned_share=self.poisoned_share)
        if self.draws < 1 or self.epochs < 0:
            raise InputError(f"FCT: draws must be 1 or more and epochs 0 or more, found {self.draws} and {self.epochs}")

    def inspect(self, seen: Observed) -> Suspicion:
        """Fine-tune a copy of the model, measure how features move, and split (see `Sifter.score`)."""
        scores, dead = self.measure(seen)
        clean, poisoned = extremes(scores, self.clean_share, self.poisoned_share, seen.runtime.generator("fct", "ties"))
        ties = int((scores == scores[clean].max()).sum()) if bool(clean.any()) else 0
        return Suspicion(
            scores=scores,
            clean=clean,
            poisoned=poisoned,
            summary=f"the {int(poisoned.sum())} rows whose features move most are held poisoned, by their number alone",
            reasons=[f"features move by {score:.3f} under rotation and shift" for score in scores.tolist()],
            evidence={"rows_without_features": dead, "ties_at_the_clean_threshold": ties},
        )

    def measure(self, seen: Observed) -> tuple[Float[Tensor, "n"], int]:
        """Return Delta of each row, and how many rows have no features at all (norm 0)."""
        runtime = seen.runtime
        model = seen.model
        if self.epochs:
            model = self.push_apart(seen)
        head = seen.head(model)
        images = seen.rows.images
        before, _ = run_over(model, head, images, runtime, "FCT: features")
        generator = runtime.generator("fct", "tau")
        total = torch.zeros(len(before))
        for number in range(self.draws):
            after, _ = run_over(
                model, head, images, runtime, f"FCT: draw {number + 1}", lambda batch, _: TURN(batch, generator)
            )
            total += movement(before, after)
        return total / self.draws, int((before.norm(dim=1) < LEAST).sum())

    def push_apart(self, seen: Observed) -> Network:
        """Return a copy of the model whose classes' mean features were pushed apart."""
        model = copy.deepcopy(seen.model).requires_grad_(True)
        recipe = Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            nesterov=False,
            schedule="constant",
            label_smoothing=0.0,
            ema=0.0,
            augmentation="none",
            low_resolution=0.0,
        )
        head = seen.head(model)
        hook = PushApart(next(name for name, one in model.named_modules() if one is head), seen.rows.classes)
        fit(
            model,
            seen.rows,
            recipe,
            seen.runtime.part(0.6),
            hook=hook,
            resume=stage(seen.resume, "fct"),
            description="FCT: pushing classes apart",
        )
        return model


def movement(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """Return the squared distance of each row's features, both divided by their norms: 0 to 4.

    A row without features before and after does not move.
    """
    unit = [F.normalize(one, dim=1, eps=LEAST) for one in (before, after)]
    return (unit[0] - unit[1]).square().sum(1)


def closeness(features: Float[Tensor, "b d"], labels: Int[Tensor, "b"], classes: int) -> Float[Tensor, ""]:
    """Return L_intra: the mean over all pairs of classes of the cosine of their mean features.

    A class with itself counts as 0, and so does one that has no rows here.
    """
    members = F.one_hot(labels, classes).to(features.dtype)
    means = members.T @ features / members.sum(0).clamp_min(1)[:, None]
    unit = F.normalize(means, dim=1, eps=LEAST)
    cosines = unit @ unit.T
    return (cosines.sum() - cosines.diagonal().sum()) / classes**2


class PushApart(Hook):
    """Minimise `closeness` and nothing else.

    Args:
        head: name of the last linear layer, which reads the features.
        classes: of the data.
    """

    def __init__(self, head: str, classes: int) -> None:
        self.name = head
        self.classes = classes

    def identity(self) -> object:
        """Return the name and the number of classes."""
        return type(self).__name__, self.classes

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Keep the model itself: compiled, it would not notice taps that come and go."""
        super().begin(model, recipe, runtime)
        self.model = model
        self.head = model.get_submodule(self.name)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the closeness of the classes in the batch."""
        with feeding(self.head) as fed:
            self.model(batch.images)
        # Single precision: cosines of means differ little.
        with torch.autocast(self.runtime.place.type, enabled=False):
            return closeness(fed[0].float().flatten(1), batch.targets, self.classes)
