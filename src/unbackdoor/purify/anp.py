"""ANP: adversarial neuron pruning.

Wu, Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models" (NeurIPS 2021). Channels that carry a backdoor
are sensitive: they are the ones that lead to the target class if the weights of batch normalisation are perturbed to
make the loss on clean samples large. Each channel has a mask m in [0, 1], which scales its weight gamma, and
perturbations d of the weight and e of the bias beta. The masks learn to withstand the worst of them:

    min over m   alpha CE( m gamma, beta ) + (1 - alpha) CE( (m + d) gamma, (1 + e) beta ),
    d, e         drawn from +-epsilon, then moved to where CE( (m + d) gamma, (1 + e) beta ) is large, by signed steps.

Afterwards gamma is set to 0 where the mask is small. As in the published code one signed step of size epsilon follows a
random start within epsilon and nothing is cut back, so that perturbations reach 2 epsilon (`bounded` cuts them back);
the masks learn on the statistics of the batch, while the pruned model has its running ones. Rate, batches, alpha and
epsilon are those of the authors' program; BackdoorBench has a rate of 0.01 and batches of 256.

BackdoorBench takes the threshold with the lowest success of the attack on test data. Here it is the largest threshold,
or number of channels, before accuracy on held-out clean samples falls by more than `allowance`. Ours does less work
for the same masks: no gradients of weights, and none of masks in the search. Masks learn in float32: small differences
between them are what counts.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import DefenderData, hold_out
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.channels import norm_layers
from unbackdoor.purify.masked import By, MaskedNetwork, MaskHook, check_values, mask_recipe, prune_by_mask
from unbackdoor.purify.pruning import check_allowance
from unbackdoor.training import Batch, History, Recipe, Runtime, fit


@dataclass(frozen=True, kw_only=True)
class ANP(Purifier):
    """Prune the channels that adversarial perturbations of batch normalisation single out.

    Attributes:
        iterations: steps of the masks, 1 or more; rounded to whole passes over the clean samples.
        batch_size: images a step.
        learning_rate: of SGD on the masks, constant.
        epsilon: size of the perturbations, as a share of weights and biases, 0 or more.
        steps: signed steps of the perturbations, epsilon in all, 0 or more.
        bounded: whether perturbations are kept within epsilon; the published code does not.
        alpha: weight of the loss without perturbations, 0 to 1.
        by: whether "threshold" on the mask or "number" of channels is chosen.
        values: of the threshold or number that are tried, ascending; if empty, 0 to 0.9 by 0.05 or 0 to 1000 by 20
            (by less in a network with fewer channels).
        allowance: accuracy on held-out clean samples that may be lost, 0 to 1.
        augmentation: of the clean samples; see `Recipe`.
    """

    iterations: int = 2000
    batch_size: int = 128
    learning_rate: float = 0.2
    epsilon: float = 0.4
    steps: int = 1
    bounded: bool = False
    alpha: float = 0.2
    by: By = "threshold"
    values: tuple[float, ...] = ()
    allowance: float = 0.03
    augmentation: str = "crop-flip"

    # Since masks learn in float32.
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.steps < 0:
            raise InputError(
                f"ANP: iterations must be 1 or more and steps 0 or more, found {self.iterations} and {self.steps}"
            )
        if not (0 <= self.epsilon < math.inf and 0 <= self.alpha <= 1):
            raise InputError(
                "ANP: epsilon must be a number of 0 or more and alpha lie between 0 and 1,"
                f" found {self.epsilon} and {self.alpha}"
            )
        # What a recipe refuses, it refuses before its epochs are counted.
        self._recipe(1)
        check_values("ANP", self.by, self.values)
        check_allowance("ANP", self.allowance)

    def _recipe(self, epochs: int) -> Recipe:
        return mask_recipe(epochs, self.batch_size, self.learning_rate, self.augmentation)

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Learn masks, and prune `model` in place (see `Purifier.repair`)."""
        kept, held = hold_out(data.need_clean("ANP"), runtime.seed)
        layers = list(norm_layers(runtime.settle(model), "ANP").values())
        copied = copy.deepcopy(model)
        masked = MaskedNetwork(copied, norm_layers(copied, "ANP"))
        epochs = max(1, round(self.iterations / math.ceil(len(kept) / self.batch_size)))
        recipe = self._recipe(epochs)
        hook = _Adversarial(self, masked)
        history = fit(masked, kept, recipe, runtime.in_float32(), hook=hook, resume=resume, description="ANP")
        sweep, note = prune_by_mask(
            "ANP", model, layers, masked.mask, self.by, self.values, held, self.allowance, runtime
        )
        return replace(history, sweeps=(sweep,), notes=(note,))


class _Adversarial(MaskHook):
    """The loss of the masks at the worst perturbation that is found for each batch."""

    def __init__(self, options: ANP, masked: MaskedNetwork) -> None:
        super().__init__(options, masked)
        self.anp = options

    def batch(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Draw where the search begins, for weights and biases; the images stay."""
        mask = self.masked.mask
        start = torch.rand((2, len(mask)), generator=generator) * 2 - 1
        self.start = start.to(mask.device) * self.anp.epsilon
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted losses without and with perturbations."""
        options, masked = self.anp, self.masked
        clean = F.cross_entropy(masked(batch.images), batch.targets)
        if options.epsilon == 0:
            return options.alpha * clean
        weights, biases = self.search(batch)
        worst = F.cross_entropy(masked.scaled(batch.images, masked.mask + weights, 1 + biases), batch.targets)
        return options.alpha * clean + (1 - options.alpha) * worst

    def search(self, batch: Batch) -> Float[Tensor, "2 n"]:
        """Return perturbations of weights and biases that make the loss large."""
        options, change = self.anp, self.start
        mask = self.masked.mask.detach()
        for _ in range(options.steps):
            change = change.detach().requires_grad_(True)
            logits = self.masked.scaled(batch.images, mask + change[0], 1 + change[1])
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, batch.targets), change)
            change = change.detach() + options.epsilon / options.steps * gradient.sign()
            if options.bounded:
                change = change.clamp(-options.epsilon, options.epsilon)
        return change.detach()
