"""SAU: shared adversarial unlearning.

Wei, Zhang, Zha, Wu, "Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning Shared Adversarial Examples"
(NeurIPS 2023). An adversarial example that fools the suspect model and the model in repair into the same wrong answer
is likely a trigger: the inner step searches for such shared examples of each clean sample, the outer step teaches the
model in repair another answer than the suspect's.

As in the published code: delta starts at +bound, is not kept within valid pixels, batch normalisation is frozen, the
learning rate is constant, and sums are divided by the batch size. Ours does less work for the same result: the
suspect's answers to clean samples are computed once, the model's are those of the outer step, no weight gradient is
computed in the search, and samples that are shared already leave it (their loss is zero, and with frozen statistics the
samples do not touch each other).

Off by default, as there: other bounds and starts of a change, batches' own statistics in the outer step, and a loss
that teaches the true class on changed images. In L2 the published code still steps along the gradient's sign; ours
steps along the gradient, which is the steepest direction of that norm. The search always runs on running statistics.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.models.derivatives import frozen_norms
from unbackdoor.purify.base import Purifier
from unbackdoor.training import Batch, History, Hook, Recipe, Runtime, fit, logits_of


@dataclass(frozen=True, kw_only=True)
class SAU(Purifier):
    """Unlearn adversarial examples that the suspect and the repaired model share.

    Attributes:
        rounds: passes over the clean samples; the paper uses 100 (20 on Tiny-ImageNet).
        batch_size: images a step.
        learning_rate: of Adam, constant.
        norm: by which a change is bounded: "linf", its largest value; "l2", its length over all pixels of the image;
            "l1", the sum of its values without signs; "none", nothing ("Reg" in the published code).
        bound: largest change in the search by that norm, pixel units, above 0; the default is meant for "linf".
        step_size: of the search, pixel units, above 0: of the change's length with "l2", otherwise of each pixel.
        start: where the search begins, before it is brought within the bound: "max" or "min", at plus or minus `bound`
            in every pixel; "zero", at no change; "random", in each pixel uniformly between 0 and 1, as published.
        steps: of the search, 0 or more.
        valid_pixels: whether changed images are kept within [0, 1]; the published code does not.
        fool_weight: of "fool each model" in the search (beta_1; lambda_3 in the paper).
        share_weight: of "into the same answer" in the search (beta_2; lambda_4).
        clean_weight: of the cross-entropy on clean samples (lambda_1).
        unlearn_weight: of the loss on shared examples (lambda_2).
        adversarial_weight: of the cross-entropy on all changed images with their true labels, plain adversarial
            training (lmd_2 in the code); 0 leaves it out.
        train_mode: whether the outer step normalises by the statistics of clean and changed images together, and
            updates the running ones.
    """

    rounds: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-4
    norm: Literal["linf", "l2", "l1", "none"] = "linf"
    bound: float = 0.2
    step_size: float = 0.2
    start: Literal["max", "min", "zero", "random"] = "max"
    steps: int = 5
    valid_pixels: bool = False
    fool_weight: float = 0.01
    share_weight: float = 1.0
    clean_weight: float = 1.0
    unlearn_weight: float = 1.0
    adversarial_weight: float = 0.0
    train_mode: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.bound < math.inf and 0 < self.step_size < math.inf and self.steps >= 0):
            raise InputError(
                "SAU: bound and step size must be positive numbers and steps 0 or more,"
                f" found {self.bound}, {self.step_size} and {self.steps}"
            )
        if self.norm not in NORMS:
            raise InputError(f"SAU: the norm is linf, l2, l1 or none, found {self.norm!r}")
        if self.start not in STARTS:
            raise InputError(f"SAU: the start is max, min, zero or random, found {self.start!r}")
        search = (self.fool_weight, self.share_weight)
        weights = (*search, self.clean_weight, self.unlearn_weight, self.adversarial_weight)
        if not all(0 <= weight < math.inf for weight in weights):
            raise InputError(f"SAU: the five weights must be numbers of 0 or more, found {weights}")

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Unlearn in place (see `Purifier.repair`)."""
        recipe = Recipe(
            epochs=self.rounds,
            batch_size=self.batch_size,
            optimizer="Adam",
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            schedule="constant",
            label_smoothing=0.0,
            ema=0.0,
            augmentation="none",
            low_resolution=0.0,
            train_mode=False,
        )
        clean = data.need_clean("SAU")
        hook = _Unlearning(self, model, clean)
        return fit(model, clean, recipe, runtime, hook=hook, resume=resume, description="SAU")


class _Unlearning(Hook):
    """The search for shared adversarial examples, and the loss on them."""

    def __init__(self, options: SAU, suspect: nn.Module, clean: ImageSet) -> None:
        self.options = options
        self.suspect = copy.deepcopy(suspect).eval().requires_grad_(False)
        self.clean = clean
        self.stops_early = True

    def for_timing(self) -> _Unlearning:
        """Return a copy that does all steps of the search: the further the repair, the more of them are needed."""
        copied = copy.deepcopy(self)
        copied.stops_early = False
        return copied

    def identity(self) -> object:
        """Return the options."""
        return self.options

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Compute the suspect's answers to all clean samples, once."""
        super().begin(model, recipe, runtime)
        # Compiled, the search would compute weight gradients, and be compiled anew for every number of samples left.
        self.uncompiled = model
        runtime.settle(self.suspect)
        self.answers = logits_of(self.suspect, self.clean.images, runtime).argmax(1)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the outer loss of one batch, at shared adversarial examples found for it."""
        options, answers = self.options, self.answers[batch.rows]
        # Before the search, which needs the answers: with frozen statistics the two halves need no common pass.
        clean_logits = model(batch.images).float()
        adversarial = self.search(self.uncompiled, batch, clean_logits.argmax(1), answers)
        with torch.no_grad():
            fooled_to = self.suspect(adversarial).argmax(1)
        fooled = (fooled_to != batch.targets) & (fooled_to != answers)
        if options.train_mode:
            clean_logits, logits = self.answers_together(model, batch.images, adversarial)
        else:
            logits = model(adversarial).float()
        unlearn = unlearning_loss(logits, fooled_to, fooled)
        clean = F.cross_entropy(clean_logits, batch.targets)
        total = options.clean_weight * clean + options.unlearn_weight * unlearn
        if options.adversarial_weight:
            total = total + options.adversarial_weight * F.cross_entropy(logits, batch.targets)
        return total

    def answers_together(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], adversarial: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Return the logits of clean and changed images from one pass in training mode; evaluation mode is restored."""
        model.train()
        try:
            both: Tensor = model(self.runtime.layout(torch.cat([images, adversarial]))).float()
        finally:
            model.eval()
        clean, changed = both.chunk(2)
        return clean, changed

    def search(
        self, model: nn.Module, batch: Batch, own: Int[Tensor, "b"], answers: Int[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        """Return the clean images plus deltas that fool both models into the same answer, where found.

        Args:
            model: in repair.
            batch: clean images in [0, 1] and their labels.
            own: the model's answers to the clean images.
            answers: the suspect's to the clean images.
        """
        options = self.options
        step, project = NORMS[options.norm]
        delta = project(STARTS[options.start](batch.images, options.bound), options.bound)
        active = torch.arange(len(batch.images), device=batch.images.device)
        for _ in range(options.steps):
            changed = self.runtime.layout(batch.images[active] + delta[active]).requires_grad_(True)
            seen = self.seen(changed)
            with frozen_norms(self.suspect):
                suspect_logits = self.suspect(seen).float()
            objective, shared = search_objective(
                model(seen).float(),
                suspect_logits,
                batch.targets[active],
                own[active],
                answers[active],
                options.fool_weight,
                options.share_weight,
            )
            if self.stops_early and bool(shared.all()):
                break
            (gradient,) = torch.autograd.grad(objective, changed)
            moved = delta[active] - options.step_size * step(gradient)
            delta[active] = project(moved, options.bound)
            if self.stops_early:
                active = active[~shared]
        return self.seen(batch.images + delta)

    def seen(self, changed: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the changed images as the networks see them."""
        return changed.clamp(0, 1) if self.options.valid_pixels else changed


def directions(gradient: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return each image's gradient at length 1; 0 for an image without gradient."""
    # By its largest value first: squares of the small gradients of a sure model would all be 0.
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / lengths(scaled).clamp_min(1)


def within_length(delta: Float[Tensor, "b c h w"], bound: float) -> Float[Tensor, "b c h w"]:
    """Return each image's change, scaled down to this length over all its pixels if it is longer."""
    return _scaled_down(delta, lengths(delta), bound)


def within_sum(delta: Float[Tensor, "b c h w"], bound: float) -> Float[Tensor, "b c h w"]:
    """Return each image's change, scaled down until its values without signs add up to this, if they are more."""
    return _scaled_down(delta, delta.abs().sum((1, 2, 3), keepdim=True), bound)


def _scaled_down(delta: Tensor, size: Float[Tensor, "b 1 1 1"], bound: float) -> Tensor:
    return torch.where(size > bound, delta * (bound / size.clamp_min(torch.finfo(delta.dtype).tiny)), delta)


def lengths(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 1 1"]:
    """Return the Euclidean norm of each image."""
    length: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)
    return length


def within_range(delta: Float[Tensor, "b c h w"], bound: float) -> Float[Tensor, "b c h w"]:
    """Return the changes with each value kept within the bound."""
    return delta.clamp(-bound, bound)


NORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, float], Tensor]]] = {
    "linf": (torch.sign, within_range),
    "l2": (directions, within_length),
    "l1": (torch.sign, within_sum),
    "none": (torch.sign, lambda delta, bound: delta),
}
"""Of each norm, the direction of a step for a gradient, and how a change is brought within a bound."""

STARTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "max": torch.full_like,
    "min": lambda images, bound: torch.full_like(images, -bound),
    "zero": lambda images, bound: torch.zeros_like(images),
    "random": lambda images, bound: torch.rand_like(images),
}
"""Changes of these images with which a search begins, before they are brought within the bound."""


def search_objective(
    logits: Float[Tensor, "b k"],
    suspect_logits: Float[Tensor, "b k"],
    labels: Int[Tensor, "b"],
    answers: Int[Tensor, "b"],
    suspect_answers: Int[Tensor, "b"],
    fool_weight: float,
    share_weight: float,
) -> tuple[Float[Tensor, ""], Bool[Tensor, "b"]]:
    """Return what the search minimises, and which samples are shared adversarial examples already.

    Each model that is not fooled yet adds minus half its cross-entropy; each sample that is not shared yet adds the
    Jensen-Shannon divergence of the two models' answers. Sums, not means: only the gradient's sign is used, and the
    two terms have the same divisor.

    Args:
        logits: of the model in repair, at the changed images.
        suspect_logits: of the suspect, at the changed images.
        labels: true classes.
        answers: of the model in repair, to the clean images.
        suspect_answers: of the suspect, to the clean images.
        fool_weight: of the cross-entropies.
        share_weight: of the divergences.
    """
    guesses, suspect_guesses = logits.argmax(1), suspect_logits.argmax(1)
    fooled, suspect_fooled = guesses != answers, suspect_guesses != suspect_answers
    shared = fooled & suspect_fooled & (guesses == suspect_guesses)
    entropy = F.cross_entropy(logits, labels, reduction="none")
    suspect_entropy = F.cross_entropy(suspect_logits, labels, reduction="none")
    fool = -(entropy[~fooled].sum() + suspect_entropy[~suspect_fooled].sum()) / 2
    divergence = jensen_shannon(logits.softmax(1), suspect_logits.softmax(1))[~shared].sum()
    return fool_weight * fool + share_weight * divergence, shared


def jensen_shannon(p: Float[Tensor, "b k"], q: Float[Tensor, "b k"]) -> Float[Tensor, "b"]:
    """Return the Jensen-Shannon divergence of two distributions in nats, 0 to log 2; probabilities floored at 1e-8."""
    p, q = p.clamp_min(1e-8), q.clamp_min(1e-8)
    middle = (p + q) / 2
    return ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)) / 2


def unlearning_loss(
    logits: Float[Tensor, "b k"], fooled_to: Int[Tensor, "b"], fooled: Bool[Tensor, "b"]
) -> Float[Tensor, ""]:
    """Return the outer loss on shared examples: minus the logarithm of not giving the suspect's answer.

    Twice the same quantity, halved, with clamps that keep it finite and let answers below 0.1 % rest. The sum runs over
    the fooled samples and is divided by the whole batch.

    Args:
        logits: of the model in repair, at the adversarial images.
        fooled_to: the suspect's answers there.
        fooled: where that answer is neither the true class nor the suspect's answer to the clean image.
    """
    p = logits.softmax(1).gather(1, fooled_to[:, None]).squeeze(1)
    terms = -torch.log(1e-6 + (1 - p).clamp_max(0.999)) - torch.log(1 + 1e-6 - p.clamp_min(0.001))
    return (terms * fooled).sum() / (2 * len(p))
