"""D-ST: learn features without the labels of what may be poisoned, then a classifier on them.

Chen, Wu, Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples" (NeurIPS 2022). FCT holds
some rows of the untrusted data clean and some poisoned.

1. Semi-supervised contrastive learning. Each image is seen twice, augmented. With normalised projections z of both
   views of a batch, the positives P(i) of view i, temperature t and base temperature b,
       L = t / b  mean_i  -1/|P(i)|  sum_{p in P(i)} log( exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t) ).
   P(i) is the other view of the image, and for an image held clean also those of its class that are held clean. In the
   published code they are all of its class, poisoned and undecided ones too; `positives` chooses.
2. The features are frozen, and the last layer learns
       CE(rows held clean) - forgetting CE(rows held poisoned).

The rate of the last layer falls on a cosine; how it does so in the authors' program is not known to us.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.data.augment import Augmentation, ColorJitter, Flip, Grey, ResizeCrop
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.secure.base import SecureTrainer, Trained
from unbackdoor.secure.frozen import FrozenStem
from unbackdoor.sift import FCT, Suspicion
from unbackdoor.sift.base import check_share
from unbackdoor.training import Batch, Hook, Recipe, Runtime, fit, stage
from unbackdoor.training.recipe import refuse_mixing

VIEW = Augmentation((ResizeCrop(scale=(0.2, 1.0)), Flip(), ColorJitter(probability=0.8), Grey()))
WARM_UP, COLD = 10 / 200, 0.01 / 0.5
"""Share of contrastive learning in which the rate rises, and the share of the peak at which it begins."""
SIFTING, LEARNING = 0.35, 0.6
"""Shares of a budget for finding out what rows are held to be, on which all else rests, and for the features."""
Positives = Literal["paper", "code"]


@dataclass(frozen=True, kw_only=True)
class DST(SecureTrainer):
    """Contrastive features in which labels count for rows held clean alone, and a classifier on them.

    Attributes:
        epochs: of contrastive learning.
        batch_size: images a step, in both stages.
        learning_rate: of SGD in contrastive learning: the peak, of a cosine after a rise.
        weight_decay: of SGD there.
        temperature: of similarities, above 0.
        base_temperature: by which the loss is scaled, above 0.
        projection: numbers in which images are compared, 1 or more.
        positives: "paper" (of the same class and held clean) or "code" (of the same class).
        head_epochs: passes of the last layer over the rows held clean or poisoned.
        head_learning_rate: of SGD there, on a cosine, without weight decay.
        forgetting: weight of the loss on rows held poisoned, which is climbed, 0 or more.
        augmentation: of the images there; see `Recipe`.
        clean_share: of the rows, those that FCT scores lowest, held clean.
        poisoned_share: of the rows, those that FCT scores highest, held poisoned.
    """

    epochs: int = 200
    batch_size: int = 512
    learning_rate: float = 0.5
    weight_decay: float = 1e-4
    temperature: float = 0.1
    base_temperature: float = 0.07
    projection: int = 128
    positives: Positives = "paper"
    head_epochs: int = 10
    head_learning_rate: float = 5.0
    forgetting: float = 1e-3
    augmentation: str = "crop-flip"
    clean_share: float = 0.20
    poisoned_share: float = 0.05

    # What it goes by is what FCT says. Every view had its colours jittered before, not four of five; and similarities
    # were in bfloat16.
    revision: ClassVar[int] = FCT.revision + 2

    def __post_init__(self) -> None:
        if not (0 < self.temperature < math.inf and 0 < self.base_temperature < math.inf and self.projection >= 1):
            raise InputError(
                "DST: temperatures must be above 0 and the projection 1 or more, found"
                f" {self.temperature}, {self.base_temperature} and {self.projection}"
            )
        if self.positives not in ("paper", "code") or not 0 <= self.forgetting < math.inf:
            raise InputError(
                "DST: positives are paper or code, and forgetting 0 or more, found"
                f" {self.positives!r} and {self.forgetting}"
            )
        refuse_mixing("DST", self.augmentation)
        check_share("DST", clean_share=self.clean_share, poisoned_share=self.poisoned_share)
        self._recipes()

    def _recipes(self) -> tuple[Recipe, Recipe]:
        """Return the recipes of the two stages."""
        contrasting = contrasting_recipe(self.epochs, self.batch_size, self.learning_rate, self.weight_decay)
        classifying = replace(
            contrasting,
            epochs=self.head_epochs,
            learning_rate=self.head_learning_rate,
            weight_decay=0.0,
            augmentation=self.augmentation,
        )
        return contrasting, classifying

    def sift(self, untrusted: ImageSet, runtime: Runtime, resume: Path | None) -> Suspicion:
        """Return which rows are held clean and which poisoned, by a model of the data of FCT's own."""
        sifter = FCT(clean_share=self.clean_share, poisoned_share=self.poisoned_share)
        return sifter.score(DefenderData(untrusted=untrusted), runtime.part(SIFTING), resume=stage(resume, "sift"))

    def learn(
        self, build_model: Callable[[], Network], data: DefenderData, runtime: Runtime, resume: Path | None
    ) -> Trained:
        """Learn features, then the last layer (see `SecureTrainer.learn`)."""
        untrusted, model = data.need_untrusted("DST"), build_model()
        found = self.sift(untrusted, runtime, resume)
        held_clean, held_poisoned = found.held()
        contrasting, classifying = self._recipes()
        projected = Projected(model, self.projection, runtime.generator("projection").initial_seed())
        hook = Contrast(found.clean, self.temperature, self.base_temperature, self.positives)
        part, resumed = runtime.part(LEARNING), stage(resume, "features")
        fit(projected, untrusted, contrasting, part, hook=hook, resume=resumed, description="DST: features")
        decided = torch.cat([held_clean, held_poisoned]).sort().values
        head = MixedEntropy(found.clean[decided], self.forgetting)
        frozen = FrozenStem(model, model.stages()[-1][0])
        part = runtime.part(1 - SIFTING - LEARNING)
        given = untrusted.subset(decided)
        history = fit(frozen, given, classifying, part, hook=head, resume=resume, description="DST: classifier")
        note = f"DST held {len(held_clean)} of {len(untrusted)} images clean and {len(held_poisoned)} poisoned."
        return Trained(network=model, history=replace(history, notes=(note,)))


def contrasting_recipe(epochs: int, batch_size: int, learning_rate: float, weight_decay: float) -> Recipe:
    """Return the recipe of learning features by `Contrast`, which makes the two views of an image itself."""
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        nesterov=False,
        weight_decay=weight_decay,
        schedule="cosine",
        label_smoothing=0.0,
        ema=0.0,
        augmentation="none",
        low_resolution=0.0,
    )


class Projected(nn.Module):
    """A network without its last layer, and two layers that project its features onto a sphere.

    Args:
        network: its weights are shared; its last stage must be a linear layer.
        size: of the projection.
        seed: of the two layers' weights.

    Raises:
        InputError: the network does not end with a linear layer.
    """

    def __init__(self, network: Network, size: int, seed: int) -> None:
        super().__init__()
        stages = network.stages()
        last = stages[-1][1] if stages else None
        if not isinstance(last, nn.Linear):
            raise InputError(
                "contrastive learning takes the last layer off a network, and"
                f" {network.description.architecture} tells no stages of which the last is a linear layer; choose"
                " another network"
            )
        self.encoder, _ = network.split(stages[-1][0])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            wide = last.in_features
            self.projection = nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, size))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b s"]:
        """Return projections of length 1."""
        return F.normalize(self.projection(self.encoder(images)).float(), dim=1)


class Contrast(Hook):
    """Two views of each image, and the contrastive loss on them.

    Args:
        clean: whether each row is held clean.
        temperature: see `DST`.
        base_temperature: see `DST`.
        positives: see `DST`.
    """

    def __init__(
        self, clean: Bool[Tensor, "n"], temperature: float, base_temperature: float, positives: Positives
    ) -> None:
        self.clean, self.options = clean, (temperature, base_temperature, positives)

    def identity(self) -> object:
        """Return the options and the rows."""
        return ("DST", *self.options, self.clean.nonzero().flatten().tolist())

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Move the rows to the device."""
        super().begin(model, recipe, runtime)
        self.clean = self.clean.to(runtime.place)

    def batch(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Return both views, one after the other."""
        views = [VIEW(batch.images, generator) for _ in range(2)]
        return replace(batch, images=torch.cat(views), targets=batch.targets.repeat(2), rows=batch.rows.repeat(2))

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the first stage."""
        temperature, base_temperature, positives = self.options
        pairs = positive_pairs(batch.targets, self.clean[batch.rows], positives)
        return temperature / base_temperature * contrastive_loss(model(batch.images), pairs, temperature)

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do one step, at a rate that rises to that of the schedule at first."""
        if batch.progress < WARM_UP:
            end = (1 + math.cos(math.pi * WARM_UP)) / 2
            rate = self.recipe.learning_rate * (COLD + batch.progress / WARM_UP * (end - COLD))
            for group in optimizer.param_groups:
                group["lr"] = rate
        return super().update(model, batch, optimizer)


def positive_pairs(labels: Int[Tensor, "v"], clean: Bool[Tensor, "v"], positives: Positives) -> Bool[Tensor, "v v"]:
    """Return which views are positives (columns) of which (rows).

    Args:
        labels: of the first views of all images, and then of the second ones.
        clean: whether the images are held clean, likewise.
        positives: see `DST`.
    """
    count = len(labels) // 2
    same_image = torch.eye(count, dtype=torch.bool, device=labels.device).repeat(2, 2)
    same_class = (labels[:, None] == labels) & clean[:, None]
    if positives == "paper":
        same_class &= clean
    return (same_image | same_class) & ~torch.eye(2 * count, dtype=torch.bool, device=labels.device)


def contrastive_loss(
    projections: Float[Tensor, "v s"], pairs: Bool[Tensor, "v v"], temperature: float
) -> Float[Tensor, ""]:
    """Return the mean over views of the mean cross-entropy of their positives among all others.

    Args:
        projections: of length 1.
        pairs: see `positive_pairs`; each row has one positive or more.
        temperature: above 0.
    """
    # Autocast would multiply in bfloat16, whose steps are as large as the differences that count.
    with torch.autocast(projections.device.type, enabled=False):
        projections = projections.float()
        similar = projections @ projections.T / temperature
        alone = torch.eye(len(similar), dtype=torch.bool, device=similar.device)
        logs = similar - similar.masked_fill(alone, -math.inf).logsumexp(1, keepdim=True)
        return -(logs.masked_fill(~pairs, 0).sum(1) / pairs.sum(1)).mean()


class MixedEntropy(Hook):
    """Cross-entropy that is descended on some rows and climbed on the others.

    Args:
        clean: whether each row is held clean.
        forgetting: see `DST`.
    """

    def __init__(self, clean: Bool[Tensor, "n"], forgetting: float) -> None:
        self.clean, self.forgetting = clean, forgetting

    def identity(self) -> object:
        """Return the weight and the rows."""
        return "DST", self.forgetting, self.clean.nonzero().flatten().tolist()

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Move the rows to the device."""
        super().begin(model, recipe, runtime)
        self.clean = self.clean.to(runtime.place)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the second stage; a batch without rows of one kind has no such term."""
        losses = F.cross_entropy(model(batch.images), batch.targets, reduction="none")
        clean = self.clean[batch.rows].to(losses)
        descended = (losses * clean).sum() / clean.sum().clamp_min(1)
        climbed = (losses * (1 - clean)).sum() / (1 - clean).sum().clamp_min(1)
        return descended - self.forgetting * climbed
