"""NPD: neural polarizer defence.

Zhu, Wei, Zha, Wu, "Neural Polarizer: A Lightweight and Effective Backdoor Defense via Purifying Poisoned Features"
(NeurIPS 2023). One small layer, the polarizer (here a "plug", see `models/plugs.py`), is put into the frozen suspect
and trained to take out of the features what leads to the attacker's class. That class is unknown, so each clean image x
with label y has a guess of its own: y', the model's second choice. Adversarial images x' = x + delta, which are taken
for y', stand for triggered ones:

    delta = about argmin CE(f(x + delta), y'),  ||delta|| <= bound,   a few steps along the sign of the gradient
    L     = lambda_1 CE(f(x), y) + lambda_2 CE(f(x'), k)
          - lambda_3 mean log(1.0001 - p_w) - lambda_4 mean log(1.0001 - p_y')

with k the model's answer to x, p the softmax of f(x'), and w the likeliest class there other than y. Before that the
plug is warmed up with plain cross-entropy, its batch normalisation on batch statistics.

Unlike the published code: the saved model has the plug (theirs is the suspect, with the plug in a file beside it); y'
masks the true class by minus infinity, not by a logit of -10; any convolutional network can be repaired; with
`residual` the plug starts as the identity, not as twice the features. Ours does less work for the same result: the
frozen layers before the plug see the clean images once, the answers to these are computed once a step, and whether the
search may end is read off the next step's forward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Edit, Network, insert_plug
from unbackdoor.models.derivatives import frozen_norms
from unbackdoor.models.edits import insertion_point
from unbackdoor.models.plugs import SIZED, PlugKind
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.frozen import Frozen, PlugHook
from unbackdoor.purify.places import default_place, incoming_size
from unbackdoor.purify.statistics import statistics_kept
from unbackdoor.training import Batch, History, Recipe, Runtime, fit, stage

FOOLED = 0.6
"""The search ends when a larger share of the batch is taken for y'."""
WARM_UP_SHARE = 0.05
"""Of the budget; a warm-up epoch costs about a tenth of a later one."""


@dataclass(frozen=True, kw_only=True)
class NPD(Purifier):
    """Put a small trained layer into the frozen model.

    Attributes:
        epochs: passes over the clean samples; the paper uses 50 (100 on CIFAR-100).
        batch_size: images a step; the paper uses 128 (256 on CIFAR-100).
        learning_rate: of SGD, constant.
        warm_up_epochs: passes before these, with plain cross-entropy and a rate of 1e-4; 0 or more.
        bound: norm of the change of an image in the search, pixel units, above 0; the paper uses 3 (5 on GTSRB, 6 on
            Tiny-ImageNet). With the norm Linf at most 1; the published code has 0.2.
        norm: "L2", where the search starts at no change, or "Linf", where it starts at +bound everywhere.
        steps: of the search, 0 or more; the published code has 10 for Linf.
        step_size: of the search, above 0; the published code has 0.44 for Linf. Pixel units along the sign.
        sign: whether the search goes along the sign of the gradient, or along the gradient of the batch's mean
            cross-entropy itself, as the published code does on Tiny-ImageNet.
        clean_weight: of the cross-entropy on clean samples (lambda_1).
        keep_weight: of keeping the model's answer on adversarial ones (lambda_2).
        other_weight: of lowering their likeliest other class (lambda_3).
        guess_weight: of lowering the class that the search aimed at (lambda_4).
        plug: kind of the layer.
        train_mode: whether the layer's batch normalisation uses the statistics of each batch in training after the
            warm-up too, and moves its running ones to those of the clean images; the published code has true on
            Tiny-ImageNet. Search and guesses have the running ones.
        residual: whether the features are added to what the layer makes of them.
        before: the module that the layer comes before, such as "layer4.1.conv1" or a block such as "layer4.1"; empty
            for the last but one convolution that is larger than 1 x 1.
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 0.01
    warm_up_epochs: int = 5
    bound: float = 3.0
    norm: Literal["L2", "Linf"] = "L2"
    steps: int = 2
    step_size: float = 0.1
    sign: bool = True
    clean_weight: float = 1.0
    keep_weight: float = 0.4
    other_weight: float = 0.4
    guess_weight: float = 0.4
    train_mode: bool = False
    plug: PlugKind = "convbn"
    residual: bool = False
    before: str = ""

    def __post_init__(self) -> None:
        if self.norm not in ("L2", "Linf"):
            raise InputError(f"NPD: the norm is L2 or Linf, found {self.norm!r}")
        if not (0 < self.bound < math.inf and 0 < self.step_size < math.inf):
            raise InputError(
                f"NPD: bound and step size must be positive numbers, found {self.bound} and {self.step_size}"
            )
        if self.norm == "Linf" and self.bound > 1:
            raise InputError(f"NPD: with the norm Linf the bound is 1 at most (a whole pixel), found {self.bound}")
        if self.steps < 0 or self.warm_up_epochs < 0:
            raise InputError(
                f"NPD: steps and warm-up epochs must be 0 or more, found {self.steps} and {self.warm_up_epochs}"
            )
        weights = (self.clean_weight, self.keep_weight, self.other_weight, self.guess_weight)
        if not all(0 <= weight < math.inf for weight in weights):
            raise InputError(f"NPD: the four weights must be numbers of 0 or more, found {weights}")
        # What cannot be made is refused before any work.
        self._edit(self.before or "default", (1, 1))
        self._polarizing()

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Put the plug in, and train it alone (see `Purifier.repair`)."""
        clean = data.need_clean("NPD")
        runtime.settle(model).eval()
        before = self.before or default_place(model, runtime)
        point = insertion_point(model.body, before)
        plug = insert_plug(model, self._edit(before, incoming_size(model, before, point, runtime)))
        model.requires_grad_(False)
        plug.requires_grad_(True)
        frozen = Frozen.of(model, point, clean, runtime)
        if self.warm_up_epochs > 0:
            fit(
                model,
                clean,
                self._recipe(self.warm_up_epochs, 1e-4, momentum=0.0, weight_decay=0.0),
                runtime.part(WARM_UP_SHARE),
                hook=_WarmUp(self, frozen),
                resume=stage(resume, "warm-up"),
                description="NPD, warm-up",
            )
            runtime = runtime.part(1 - WARM_UP_SHARE)
        hook = _Polarizing(self, frozen)
        history = fit(model, clean, self._polarizing(), runtime, hook=hook, resume=resume, description="NPD")
        model.requires_grad_(True)
        note = f"The model has a new layer, a plug of the kind {self.plug}, before {point}; all else is as it was."
        return replace(history, notes=(*history.notes, note))

    def _edit(self, before: str, size: tuple[int, int]) -> Edit:
        sized = size if self.plug in SIZED else None
        return Edit(kind=self.plug, before=before, residual=self.residual, size=sized)

    def _polarizing(self) -> Recipe:
        return self._recipe(self.epochs, self.learning_rate, momentum=0.9, weight_decay=5e-4)

    def _recipe(self, epochs: int, learning_rate: float, *, momentum: float, weight_decay: float) -> Recipe:
        return Recipe(
            epochs=epochs,
            batch_size=self.batch_size,
            learning_rate=learning_rate,
            momentum=momentum,
            nesterov=False,
            weight_decay=weight_decay,
            schedule="constant",
            label_smoothing=0.0,
            ema=0.0,
            augmentation="none",
            low_resolution=0.0,
            train_mode=False,
        )


class _WarmUp(PlugHook):
    """Plain cross-entropy, with the plug's batch normalisation on batch statistics."""

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the cross-entropy."""
        # One value a channel has no statistics.
        self.plug.train(len(batch.images) > 1)
        logits = self.head(self.clean_features(batch)).float()
        self.plug.eval()
        return F.cross_entropy(logits, batch.targets)


class _Polarizing(PlugHook):
    """The search for adversarial images, and the loss on them and on clean ones."""

    options: NPD

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of one batch, at adversarial images found for it."""
        options = self.options
        clean = self.clean_features(batch)
        clean_logits = self.head(clean).float()
        answers = clean_logits.detach().argmax(1)
        guesses = second_choice(clean_logits.detach(), batch.targets)
        _, features = self.search(batch.images, guesses)
        if options.train_mode:
            clean_logits, logits = self.on_batch_statistics(clean, features)
        else:
            logits = self.head(features).float()
        other, guess = lowered(logits, batch.targets, guesses)
        return (
            options.clean_weight * F.cross_entropy(clean_logits, batch.targets)
            + options.keep_weight * F.cross_entropy(logits, answers)
            + options.other_weight * other
            + options.guess_weight * guess
        )

    def on_batch_statistics(
        self, clean: Float[Tensor, "b ..."], adversarial: Float[Tensor, "b ..."]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Return the logits of both, each by statistics of its own; those of the clean ones move the running ones."""
        # One value a channel has no statistics.
        self.plug.train(len(clean) > 1)
        clean_logits = self.head(clean).float()
        with statistics_kept(self.plug):
            logits = self.head(adversarial).float()
        self.plug.eval()
        return clean_logits, logits

    def search(
        self, images: Float[Tensor, "b c h w"], guesses: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b ..."]]:
        """Return adversarial images that are taken for the guesses, where found, and their features at the cut.

        Args:
            images: clean, in [0, 1].
            guesses: the class that each is to be taken for.
        """
        options = self.options
        delta = torch.full_like(images, options.bound if options.norm == "Linf" else 0.0)
        for step in range(options.steps):
            delta.requires_grad_(True)
            seen = (images + delta).clamp(0, 1)
            with frozen_norms(self.stem, self.head):
                features = self.stem(seen)
                logits = self.head(features).float()
            # The images are those that the step before made: what it has reached costs no pass of its own.
            if step > 0 and int((logits.argmax(1) == guesses).sum()) > FOOLED * len(guesses):
                return seen.detach(), features.detach()
            # A sum, not a mean: small numbers may vanish before they are divided.
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, guesses, reduction="sum"), delta)
            way = gradient.sign() if options.sign else gradient / len(guesses)
            delta = projected(delta.detach() - options.step_size * way, options.bound, options.norm)
        with torch.no_grad():
            seen = (images + delta).clamp(0, 1)
            return seen, self.stem(seen)


def second_choice(logits: Float[Tensor, "b k"], labels: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
    """Return the likeliest class other than the true one."""
    return logits.scatter(1, labels[:, None], -math.inf).argmax(1)


def lowered(
    logits: Float[Tensor, "b k"], labels: Int[Tensor, "b"], guesses: Int[Tensor, "b"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return -log(1.0001 - p), averaged: at the likeliest class other than the true one, and at the guess.

    Args:
        logits: of adversarial images.
        labels: true classes.
        guesses: classes that the images were made to be taken for.
    """
    p = logits.softmax(1)
    other, guess = (
        -torch.log(1.0001 - p.gather(1, classes[:, None])).mean()
        for classes in (second_choice(logits, labels), guesses)
    )
    return other, guess


def projected(delta: Float[Tensor, "b c h w"], bound: float, norm: str) -> Float[Tensor, "b c h w"]:
    """Return each change of an image scaled down (L2) or clipped (Linf) to the bound."""
    if norm == "Linf":
        return delta.clamp(-bound, bound)
    norms = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(1e-12)
    scaled: Tensor = delta * (bound / norms).clamp_max(1).view(-1, 1, 1, 1)
    return scaled
