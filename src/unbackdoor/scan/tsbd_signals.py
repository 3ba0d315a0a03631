"""TSBD's observations as a scanner: what clean unlearning changes, and how active neurons are.

Lin, Liu, Wei, Li, Xiong, "Unveiling and Mitigating Backdoor Vulnerabilities based on Unlearning Weight Changes and
Backdoor Activeness" (NeurIPS 2024), who repair by them. A copy of the model unlearns the clean samples, by gradient
ascent for some epochs, or until accuracy is down to chance. Then three numbers are read off:

- The sink: where the answers flee to. A model that must not give the true class gives the class that it is led to
  most easily, and of a backdoored one that is often the target. The anomaly of a class is a robust index of the
  logarithm of its mean probability, after unlearning, on images of other classes. Ours; the paper does not look at
  the answers. The other two are told and not compared.
- The concentration of the neuron weight change (NWC): the share of it that the most changed tenth of a layer's
  neurons has, the mean over the layers. The paper: few neurons carry the backdoor, and unlearning changes them most.
- The activeness: how large the gradients of the loss on clean samples are, which the paper finds larger in backdoored
  models in early fine-tuning. Here before any step, in full precision, and for each layer the norm of its gradient
  times that of its weights, since only the product does not depend on how long the weights before a normalisation
  are; the logarithm of the root of the sum of squares over the layers.

The paper lets unlearning go on until accuracy is down to chance, which takes tens of epochs of 2,500 images; here the
epochs are few, as the changes are only compared with each other. As in TSBD unlearning is in float32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unbackdoor.data import DefenderData, ImageSet, draw_clean
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.scan.base import Finding, Scanner, clean_to_compare
from unbackdoor.scan.outliers import low_outliers
from unbackdoor.training import Recipe, Runtime, logits_of
from unbackdoor.training.unlearning import unlearned
from unbackdoor.training.weight_change import neuron_layers, neuron_weight_change, weight_changes

CHANCE = 0.1
"""Accuracy at which a model has unlearned, unless chance is higher; the authors'."""
AT_ONCE = 64
"""Images whose gradients are taken in one pass."""
LEAST = 1e-6
"""Of a probability: what lies below is as good as none."""
LEAST_SPREAD = 0.1
"""Of the logarithms of such probabilities: where most classes have none, a little more of it is no outlier."""


@dataclass(frozen=True, kw_only=True)
class TSBDSignals(Scanner):
    """Let a copy unlearn the clean samples, and look at where its answers go and which neurons change.

    Attributes:
        epochs: of unlearning at most, until accuracy is down to chance.
        batch_size: images a step.
        learning_rate: of SGD, constant.
        most_images: clean samples that are unlearned.
        threshold: on the anomaly index (scaled median absolute deviations above the median).
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-4
    most_images: int = 256
    threshold: float = 3.5

    # Since unlearning is in float32, and a spread is not taken for smaller than it can be told.
    revision: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.most_images < 2:
            raise InputError(f"TSBDSignals: 2 clean samples or more are unlearned, found {self.most_images}")
        if not math.isfinite(self.threshold):
            raise InputError(f"TSBDSignals: the threshold must be a number, found {self.threshold}")
        self._recipe()

    def _recipe(self) -> Recipe:
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            nesterov=False,
            weight_decay=0.0,
            schedule="constant",
            label_smoothing=0.0,
            ema=0.0,
            augmentation="none",
            low_resolution=0.0,
        )

    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        """Return the verdict (see `Scanner.scan`)."""
        clean = clean_to_compare(data, "TSBDSignals")
        some = draw_clean(clean, min(self.most_images, len(clean)), runtime.seed).to(runtime.place)
        layers = list(neuron_layers(model, runtime.layout(some.images[:1]).float() / 255))
        learning = copy.deepcopy(model).requires_grad_(True)
        active = activeness(learning, some, layers)
        enough = max(CHANCE, 1 / clean.classes)
        forgetful, history = unlearned(learning, some, self._recipe(), runtime, enough=enough)
        anomaly = low_outliers(-sink(forgetful, some, runtime).clamp_min(LEAST).log(), LEAST_SPREAD)
        suspected = [int(c) for c in anomaly.argsort(descending=True) if anomaly[c] > self.threshold]
        largest = f"{float(anomaly.max()):.1f} (threshold {self.threshold:g})"
        return Finding(
            backdoored=bool(suspected),
            suspected=tuple(suspected),
            calibrated=False,
            anomaly=anomaly,
            threshold=self.threshold,
            reason=f"a copy that unlearns flees to class {suspected[0]}: anomaly index {largest}"
            if suspected
            else f"no evidence in what clean unlearning changes: the largest anomaly index is {largest}",
            # A note says that accuracy was not low enough; the schedule itself may be too short for that.
            shortened=bool(history.notes) and history.epochs < self.epochs,
            evidence={
                "unlearning_epochs": history.epochs,
                "concentration": concentration(weight_changes(model, forgetful, layers)),
                "activeness": active,
            },
        )


def sink(model: Network, images: ImageSet, runtime: Runtime) -> Float[Tensor, "k"]:
    """Return the mean probability that each class gets on images of other classes; 0 for a class that is all there is.

    Args:
        model: in evaluation mode.
        images: on the runtime's device.
        runtime: device and precision.
    """
    answers = logits_of(model, images.images, runtime).softmax(1)
    others = images.labels[:, None] != torch.arange(images.classes, device=images.device)
    return ((answers * others).sum(0) / others.sum(0).clamp_min(1)).cpu()


def concentration(changes: Sequence[Float[Tensor, "neurons weights"]]) -> float:
    """Return the share of a layer's NWC that its most changed tenth of neurons has, the mean over the layers."""
    shares = []
    for change in changes:
        total = neuron_weight_change([change])
        most = total.topk(max(1, len(total) // 10)).values.sum()
        shares.append(float(most / total.sum().clamp_min(torch.finfo(total.dtype).tiny)))
    return sum(shares) / len(shares)


def activeness(model: Network, images: ImageSet, layers: Sequence[str]) -> float:
    """Return the logarithm of the size of the gradients of the cross-entropy, in full precision.

    Args:
        model: in evaluation mode, its weights with gradients allowed; it gets none.
        images: on the model's device.
        layers: names of those whose weights count.
    """
    weights = [model.get_parameter(f"{name}.weight") for name in layers]
    gradients = [torch.zeros_like(weight) for weight in weights]
    for part, labels in zip(torch.split(images.images, AT_ONCE), torch.split(images.labels, AT_ONCE)):
        loss = F.cross_entropy(model(part.float() / 255), labels, reduction="sum") / len(images)
        # A layer that the loss does not reach is not active.
        for total, more in zip(gradients, torch.autograd.grad(loss, weights, allow_unused=True)):
            if more is not None:
                total.add_(more)
    sizes = torch.stack([weight.detach().norm() * gradient.norm() for weight, gradient in zip(weights, gradients)])
    return float(sizes.norm().clamp_min(torch.finfo(sizes.dtype).tiny).log())
