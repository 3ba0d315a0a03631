"""Trap-and-Replace: trap the backdoor in a small head by a bait, then replace the head.

Wang, Hong, Zhang, Zhou, Wang, "Trap and Replace: Defending Backdoor Attacks by Trapping Them into an Easy-to-Replace
Subnetwork" (NeurIPS 2022). The network is cut into a stem and a small head.

1. Bait and trap, on the untrusted data: a decoder must reconstruct the image from the stem's features, so that the stem
   keeps what is in the picture, and the shortcut from trigger to target is learned by the head,
   CE(head(stem(x)), y) + reconstruction MSE(dec(stem(x)), x) + variation TV(dec(stem(x))).
2. Replace and patch: the stem is frozen, and a new head learns the clean samples, with CutMix, label smoothing and
   dropout.

The paper cuts off the last residual block of WRN-16-1 and of ResNet34, and what follows it; ours does so in any network
that tells its stages. Its CIFAR-10 networks see raw pixels, have biases and leaky ReLUs; ours are the shipped ones,
whose first layer normalises. Published code gives the new head dropout twice, of which that before the last layer never
acts, since the network is in evaluation mode; here it is that one which acts, since any network has such a place. Adam
is the AMSGrad variant. A sample that mixes gets a box of its own (published: one for the batch).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import DefenderData
from unbackdoor.data.augment import CutMix
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.secure.base import Needed, SecureTrainer, Trained
from unbackdoor.secure.decoder import decoder_for, features_shape
from unbackdoor.secure.frozen import FrozenStem
from unbackdoor.training import Batch, Hook, Recipe, Runtime, fit, stage
from unbackdoor.training.fits import check_takes
from unbackdoor.training.recipe import refuse_mixing

TRAPPING = 0.9
"""Share of a budget for the first stage, in which nearly all images pass."""


@dataclass(frozen=True, kw_only=True)
class TrapAndReplace(SecureTrainer):
    """Trap the backdoor in the head while the stem learns to reconstruct, then train a new head on clean samples.

    Attributes:
        head: stage at which the head begins; if empty, the last one with a convolution.
        epochs: passes over the untrusted data.
        batch_size: images a step there.
        learning_rate: of Adam there, on a cosine.
        weight_decay: of Adam in both stages.
        reconstruction: weight of the reconstruction's mean squared error, 0 or more.
        variation: weight of the reconstruction's total variation, 0 or more.
        head_epochs: passes of the new head over the clean samples.
        head_batch_size: images a step there.
        head_learning_rate: of Adam there, on a cosine.
        label_smoothing: in the new head's training, 0 to 1.
        dropout: before the new head's last layer, 0 or more and below 1.
        cutmix: probability that an image gets a box of another one in the new head's training, 0 to 1.
        augmentation: in both stages; see `Recipe`. Take "crop" where a mirrored image is another thing.
    """

    head: str = ""
    epochs: int = 200
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    reconstruction: float = 10.0
    variation: float = 1.0
    head_epochs: int = 100
    head_batch_size: int = 64
    head_learning_rate: float = 0.03
    label_smoothing: float = 0.1
    dropout: float = 0.5
    cutmix: float = 1.0
    augmentation: str = "crop-flip"

    needs: ClassVar[frozenset[Needed]] = frozenset({"clean"})

    def __post_init__(self) -> None:
        for name, weight in (("reconstruction", self.reconstruction), ("variation", self.variation)):
            if not 0 <= weight < math.inf:
                raise InputError(f"TrapAndReplace: the weight of the {name} must be 0 or more, found {weight}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"TrapAndReplace: dropout must be 0 or more and below 1, found {self.dropout}")
        if not 0 <= self.cutmix <= 1:
            raise InputError(f"TrapAndReplace: the probability of CutMix must lie in [0, 1], found {self.cutmix}")
        refuse_mixing("TrapAndReplace", self.augmentation)
        # What a recipe refuses, it refuses before the first stage is over.
        self._recipes()

    def _recipes(self) -> tuple[Recipe, Recipe]:
        """Return the recipes of the two stages."""
        trap = Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer="Adam",
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            schedule="cosine",
            label_smoothing=0.0,
            ema=0.0,
            augmentation=self.augmentation,
            low_resolution=0.0,
        )
        patch = replace(
            trap,
            epochs=self.head_epochs,
            batch_size=self.head_batch_size,
            learning_rate=self.head_learning_rate,
            label_smoothing=self.label_smoothing,
        )
        return trap, patch

    def learn(
        self, build_model: Callable[[], Network], data: DefenderData, runtime: Runtime, resume: Path | None
    ) -> Trained:
        """Trap, then replace (see `SecureTrainer.learn`)."""
        untrusted, clean = data.need_untrusted("TrapAndReplace"), data.need_clean("TrapAndReplace")
        trap, patch = self._recipes()
        trapped, model = build_model(), build_model()
        check_takes(runtime.settle(trapped), untrusted, runtime)
        at = self.head or trapped.last_block()
        baited = Baited(trapped, at, runtime.generator("decoder").initial_seed())
        hook = _Bait(self.reconstruction, self.variation)
        part = runtime.part(TRAPPING)
        resumed = stage(resume, "trap")
        trapping = fit(baited, untrusted, trap, part, hook=hook, resume=resumed, description="trap")
        stem, _ = model.split(at)
        stem.load_state_dict(baited.stem.state_dict())
        replaced = FrozenStem(model, at, self.dropout)
        part = runtime.part(1 - TRAPPING)
        mixing = _Patch(self.cutmix, clean.classes)
        history = fit(replaced, clean, patch, part, hook=mixing, resume=resume, description="replace")
        note = f"The head that was trapped, in {trapping.epochs} epochs, and then replaced begins at {at}."
        return Trained(network=model, history=replace(history, notes=(note,)), parts={"decoder": baited.decoder})


def total_variation(images: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Return the squared differences of neighbours in columns and rows, summed, by the number of all values."""
    down = (images[..., 1:, :] - images[..., :-1, :]).square().sum()
    across = (images[..., 1:] - images[..., :-1]).square().sum()
    return (down + across) / images.numel()


class Baited(nn.Module):
    """A network, cut in two, with a decoder of the stem's features.

    Args:
        network: its weights are shared.
        at: stage at which the head begins.
        seed: of the decoder's weights.
    """

    def __init__(self, network: Network, at: str, seed: int) -> None:
        super().__init__()
        self.stem, self.head = network.split(at)
        self.decoder = decoder_for(at, features_shape(network, at), network.description.image_shape, seed)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return the logits."""
        logits: Tensor = self.head(self.stem(images))
        return logits


class _Bait(Hook):
    """Cross-entropy, and what keeps the stem honest."""

    def __init__(self, reconstruction: float, variation: float) -> None:
        self.weights = reconstruction, variation

    def identity(self) -> object:
        """Return the weights."""
        return ("TrapAndReplace", *self.weights)

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Take the parts of the model that is trained."""
        super().begin(model, recipe, runtime)
        assert isinstance(model, Baited)
        self.stem, self.head, self.decoder = (runtime.compiled(one) for one in (model.stem, model.head, model.decoder))

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the first stage."""
        reconstruction, variation = self.weights
        features = self.stem(batch.images)
        images = self.decoder(features).float()
        loss = F.cross_entropy(self.head(features), batch.targets)
        return loss + reconstruction * F.mse_loss(images, batch.images) + variation * total_variation(images)


class _Patch(Hook):
    """Images with boxes of other ones."""

    def __init__(self, probability: float, classes: int) -> None:
        self.mixing, self.classes = CutMix(probability=probability), classes

    def identity(self) -> object:
        """Return how images are mixed."""
        return ("TrapAndReplace", self.mixing)

    def batch(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch, mixed."""
        count, channels, height, width = batch.images.shape
        draw = self.mixing.draw((count, channels, height, width), generator)
        targets = F.one_hot(batch.targets, self.classes).float()
        return replace(batch, images=self.mixing.apply(batch.images, draw), targets=self.mixing.mix(targets, draw))
