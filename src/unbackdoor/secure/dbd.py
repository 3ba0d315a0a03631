"""DBD: learn features without labels, a classifier that distrusts what is hard, then use the labels of the other half.

Huang, Li, Wu, Qin, Ren, "Backdoor Defense via Decoupling the Training Process" (ICLR 2022).

1. SimCLR. Each image is seen twice, augmented; the other view of the same image is to be found among all views of the
   batch (the loss of `d_st` with no row held clean). Labels play no part, so no trigger gets linked to one.
2. The features are frozen and the last layer learns symmetric cross-entropy,
       SCE = a CE + b RCE,    RCE = -sum over classes k of p_k log(y_k),    log(0) taken as log(1e-4),
   which does not follow labels that the features contradict.
3. The rows whose SCE is lowest, half of them, are held credible; of the others the labels are dropped. The whole
   network learns both by MixMatch (Berthelot and others, NeurIPS 2019): labels of the others are guessed as the mean
   answer q to two views, sharpened to q^(1/T) and normalised; all views are mixed with others,
   x = l x_i + (1 - l) x_j with l ~ Beta(m, m), l >= 1/2; and
       L = CE(credible) + u progress mean over classes of (p - target)^2 (the others).
   Which rows are credible is determined anew after each epoch.

The paper learns features for 1,000 epochs; a hundred are BackdoorBench's. A batch of the third stage is drawn from all
rows, and holds as many credible ones as chance will have it (published: as many of either kind). Views are those of
D-ST.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.data.augment import AUGMENTATIONS
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.secure.base import SecureTrainer, Trained
from unbackdoor.secure.d_st import Contrast, Projected, contrasting_recipe
from unbackdoor.secure.frozen import FrozenStem
from unbackdoor.secure.isolation import lowest
from unbackdoor.sift.base import check_share
from unbackdoor.training import Batch, Hook, Recipe, Runtime, fit, logits_of, stage
from unbackdoor.training.recipe import refuse_mixing

CROSS, REVERSE, FLOOR = 0.1, 1.0, 1e-4
"""a and b of the symmetric cross-entropy, and what a probability of 0 is taken for."""
FEATURES, CLASSIFIER = 0.6, 0.02
"""Shares of a budget for the features and for the last layer."""


@dataclass(frozen=True, kw_only=True)
class DBD(SecureTrainer):
    """Features without labels, a classifier that distrusts hard rows, and both again on the labels of credible ones.

    Attributes:
        epochs: of learning features.
        batch_size: images a step there, and in the second stage.
        learning_rate: of SGD there: the peak, of a cosine after a rise.
        weight_decay: of SGD there.
        temperature: of similarities, above 0.
        projection: numbers in which images are compared, 1 or more.
        head_epochs: passes of the last layer over all rows.
        head_learning_rate: of Adam there, constant.
        credible: share of the rows whose labels are used in the end, above 0 and below 1.
        fine_epochs: passes over all rows in the third stage.
        fine_batch_size: images a step there.
        fine_learning_rate: of Adam there, constant.
        sharpening: T, by which guessed labels are sharpened, above 0; 1 leaves them as they are.
        mixing: m, of the mixture, above 0.
        unlabelled: u, weight of the rows whose labels are not used, 0 or more.
        augmentation: of the images in the second and third stage; see `Recipe`.
    """

    epochs: int = 100
    batch_size: int = 512
    learning_rate: float = 0.4
    weight_decay: float = 1e-4
    temperature: float = 0.5
    projection: int = 128
    head_epochs: int = 10
    head_learning_rate: float = 2e-3
    credible: float = 0.5
    fine_epochs: int = 190
    fine_batch_size: int = 128
    fine_learning_rate: float = 2e-3
    sharpening: float = 0.5
    mixing: float = 0.75
    unlabelled: float = 15.0
    augmentation: str = "crop-flip"

    # Every view had its colours jittered before, not four of five; and similarities were in bfloat16.
    revision: ClassVar[int] = 2

    def __post_init__(self) -> None:
        above_zero = (self.temperature, self.sharpening, self.mixing)
        if not all(0 < value < math.inf for value in above_zero) or self.projection < 1:
            raise InputError(
                "DBD: temperature, sharpening and mixing must be above 0 and the projection 1 or more, found"
                f" {', '.join(map(str, above_zero))} and {self.projection}"
            )
        if not 0 <= self.unlabelled < math.inf:
            raise InputError(f"DBD: the weight of unlabelled rows must be 0 or more, found {self.unlabelled}")
        check_share("DBD", credible=self.credible)
        self._recipes()
        refuse_mixing("DBD", self.augmentation)

    def _recipes(self) -> tuple[Recipe, Recipe, Recipe]:
        """Return the recipes of the three stages."""
        contrasting = contrasting_recipe(self.epochs, self.batch_size, self.learning_rate, self.weight_decay)
        classifying = replace(
            contrasting,
            epochs=self.head_epochs,
            optimizer="Adam",
            learning_rate=self.head_learning_rate,
            weight_decay=0.0,
            schedule="constant",
            augmentation=self.augmentation,
        )
        tuning = replace(
            classifying, epochs=self.fine_epochs, batch_size=self.fine_batch_size, learning_rate=self.fine_learning_rate
        )
        return contrasting, classifying, tuning

    def learn(
        self, build_model: Callable[[], Network], data: DefenderData, runtime: Runtime, resume: Path | None
    ) -> Trained:
        """Learn features, the last layer, and then both (see `SecureTrainer.learn`)."""
        untrusted, model = data.need_untrusted("DBD"), build_model()
        if len(untrusted) < 2:
            raise InputError("DBD needs two images or more: one to believe, and one not to")
        contrasting, classifying, tuning = self._recipes()
        projected = Projected(model, self.projection, runtime.generator("projection").initial_seed())
        nobody = torch.zeros(len(untrusted), dtype=torch.bool)
        hook = Contrast(nobody, self.temperature, self.temperature, "paper")
        part, resumed = runtime.part(FEATURES), stage(resume, "features")
        fit(projected, untrusted, contrasting, part, hook=hook, resume=resumed, description="DBD: features")
        frozen = FrozenStem(model, model.stages()[-1][0])
        part, resumed = runtime.part(CLASSIFIER), stage(resume, "classifier")
        distrust = SymmetricEntropy()
        fit(frozen, untrusted, classifying, part, hook=distrust, resume=resumed, description="DBD: classifier")
        # The mixture needs both views as they are; the hook makes them.
        mixing = MixMatch(untrusted, self.credible, self.augmentation, self.sharpening, self.mixing, self.unlabelled)
        model.requires_grad_(True)
        part, plain = runtime.part(1 - FEATURES - CLASSIFIER), replace(tuning, augmentation="none")
        history = fit(model, untrusted, plain, part, hook=mixing, resume=resume, description="DBD: both")
        note = f"DBD used the labels of {int(mixing.trusted.sum())} of {len(untrusted)} images in the end."
        return Trained(network=model, history=replace(history, notes=(note,)))


def symmetric_entropy(logits: Float[Tensor, "b k"], labels: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Return SCE of each row."""
    logits = logits.float()
    # Of -sum p_k log(y_k) only the classes that are not the label's are left.
    others = 1 - logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    return CROSS * F.cross_entropy(logits, labels, reduction="none") - REVERSE * math.log(FLOOR) * others


def sharpened(probabilities: Float[Tensor, "b k"], temperature: float) -> Float[Tensor, "b k"]:
    """Return the probabilities to the power of 1 / T, normalised."""
    power = probabilities.pow(1 / temperature)
    return power / power.sum(1, keepdim=True)


class SymmetricEntropy(Hook):
    """Symmetric cross-entropy instead of cross-entropy."""

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean SCE."""
        return symmetric_entropy(model(batch.images), batch.targets).mean()


class MixMatch(Hook):
    """Labels of credible rows, guesses for the others, and mixtures of all.

    Args:
        data: all rows.
        credible: see `DBD`.
        augmentation: of the two views.
        sharpening: see `DBD`.
        mixing: see `DBD`.
        unlabelled: see `DBD`.

    Attributes:
        trusted: which rows are held credible now.
    """

    def __init__(
        self, data: ImageSet, credible: float, augmentation: str, sharpening: float, mixing: float, unlabelled: float
    ) -> None:
        self.data, self.view = data, AUGMENTATIONS[augmentation]
        self.options = (credible, augmentation, sharpening, mixing, unlabelled)
        self.trusted: Bool[Tensor, "n"] = torch.zeros(0, dtype=torch.bool)

    def identity(self) -> object:
        """Return the options."""
        return ("DBD", *self.options)

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Choose the rows that are credible at first."""
        super().begin(model, recipe, runtime)
        self.data = self.data.to(runtime.place)
        if not len(self.trusted):
            self._choose(model)
        self.trusted = self.trusted.to(runtime.place)

    def batch(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Return two views of all images, and keep how they will be mixed."""
        views = [self.view(batch.images, generator) for _ in range(2)]
        share = beta(self.options[3], generator)
        self.share = max(share, 1 - share)
        self.order = torch.randperm(2 * len(batch.rows), generator=generator).to(batch.rows.device)
        return replace(batch, images=torch.cat(views), targets=batch.targets.repeat(2), rows=batch.rows.repeat(2))

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the third stage."""
        _, _, sharpening, _, weight = self.options
        trusted = self.trusted[batch.rows]
        targets = F.one_hot(batch.targets, self.data.classes).float()
        targets = torch.where(trusted[:, None], targets, self._guessed(model, batch.images, sharpening))
        images = self.share * batch.images + (1 - self.share) * batch.images[self.order]
        mixed = self.share * targets + (1 - self.share) * targets[self.order]
        logits = model(self.runtime.layout(images)).float()
        return mixed_loss(logits, mixed, trusted, weight * batch.progress)

    @torch.no_grad()
    def _guessed(self, model: nn.Module, views: Float[Tensor, "v c h w"], sharpening: float) -> Float[Tensor, "v k"]:
        """Return the sharpened mean answer to both views of an image, for each of them."""
        answers = model(views).float().softmax(1)
        return sharpened((answers + answers.roll(len(answers) // 2, 0)) / 2, sharpening)

    def finished(self, model: nn.Module) -> bool:
        """Choose the credible rows anew."""
        self._choose(model)
        return False

    def _choose(self, model: nn.Module) -> None:
        losses = symmetric_entropy(logits_of(model, self.data.images, self.runtime), self.data.labels)
        rows, _ = lowest(losses, self.options[0])
        self.trusted = torch.zeros(len(losses), dtype=torch.bool, device=losses.device)
        self.trusted[rows.to(losses.device)] = True

    def state_dict(self) -> dict[str, Any]:
        """Return which rows are credible."""
        return {"trusted": self.trusted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.trusted = state["trusted"]


def mixed_loss(
    logits: Float[Tensor, "v k"], targets: Float[Tensor, "v k"], trusted: Bool[Tensor, "v"], weight: float
) -> Float[Tensor, ""]:
    """Return the cross-entropy of trusted views plus the weighted squared error of the others; either may be missing.

    Args:
        logits: of mixed views.
        targets: mixed as the views were, without a gradient.
        trusted: of the row whose share in the mixture is the larger one.
        weight: of the others.
    """
    known = trusted.float()
    entropy = -(targets * logits.log_softmax(1)).sum(1)
    error = (logits.softmax(1) - targets).square().mean(1)
    first = (entropy * known).sum() / known.sum().clamp_min(1)
    second = (error * (1 - known)).sum() / (1 - known).sum().clamp_min(1)
    return first + weight * second


def beta(parameter: float, generator: torch.Generator) -> float:
    """Draw from Beta(m, m)."""
    from scipy.special import betaincinv

    # The inverse of the distribution, since torch's own Beta takes no generator.
    return float(betaincinv(parameter, parameter, float(torch.rand((), generator=generator, dtype=torch.float64))))
