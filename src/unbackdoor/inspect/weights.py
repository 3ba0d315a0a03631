"""Weights: which neurons change when a model unlearns, and how large gradients are when it begins to learn.

The two observations that TSBD is made of: Lin, Liu, Wei, Li, Xiong, "Unveiling and Mitigating Backdoor Vulnerabilities
based on Unlearning Weight Changes and Backdoor Activeness" (NeurIPS 2024).

1. A copy of the model unlearns clean samples, and another one triggered samples with the attacker's labels, each by
   gradient ascent. The paper finds that neurons which change much in the one change much in the other.
2. A copy is fine-tuned on clean samples. The paper finds larger gradients in backdoored models than in clean ones.

Neurons, the neuron weight change (NWC) and unlearning are those of `purify.TSBD`. NWC is a sum over a neuron's weights,
so all neurons of a network together correlate by the sizes of their layers alone; here correlations are within layers,
and the overlap of the most changed neurons stands beside the one that the layers alone would give. A clean reference
is unlearned in the same way, since its neurons may agree as much. Published code augments no image when it unlearns for
these observations; neither do we, so that triggers stay where they are. The samples here are a defender's clean ones
(there: test data), and ends are as there: an accuracy of 0.1, or chance if that is more; an attack success of 0.05.
Unlearning is in float32, as in TSBD.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from unbackdoor.errors import InputError
from unbackdoor.inspect.base import Insight, Inspection, Material
from unbackdoor.inspect.compared import models_of, triggered
from unbackdoor.inspect.gradients import gradient_norms
from unbackdoor.inspect.weights_seen import Changes, Seen, insight
from unbackdoor.models import Network
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.purify.tsbd import CHANCE
from unbackdoor.training import Runtime, stage
from unbackdoor.training.unlearning import unlearned
from unbackdoor.training.weight_change import neuron_layers, neuron_weight_change, weight_changes

FORGOTTEN = 0.05
"""Attack success at which triggered samples are unlearned; the authors'."""
LEARNING = 0.2
"""Share of a budget that fine-tuning may take; unlearning takes the rest."""


@dataclass(frozen=True, kw_only=True)
class Weights(Inspection):
    """Weight changes of unlearning, neuron by neuron, and the norms of gradients in early fine-tuning.

    Attributes:
        unlearning_epochs: passes over the samples at most, until they are unlearned.
        unlearning_rate: of SGD, constant.
        epochs: passes over the clean samples in fine-tuning.
        learning_rate: of SGD in fine-tuning, constant.
        batch_size: images a step.
        shares: of all neurons that count as the most changed, each above 0 and at most 1.
    """

    title: ClassVar[str] = "Weight changes and gradients"
    slow: ClassVar[bool] = True

    unlearning_epochs: int = 1000
    unlearning_rate: float = 1e-4
    epochs: int = 3
    learning_rate: float = 0.01
    batch_size: int = 256
    shares: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2)

    def __post_init__(self) -> None:
        if self.unlearning_epochs < 1 or self.epochs < 1:
            raise InputError(
                "Weights: unlearning and fine-tuning take 1 epoch or more,"
                f" found {self.unlearning_epochs} and {self.epochs}"
            )
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise InputError(f"Weights: shares of neurons lie above 0 and at most at 1, found {self.shares}")

    def look(self, model: Network, material: Material, runtime: Runtime, resume: Path | None) -> Insight:
        """Unlearn, fine-tune and compare (see `Inspection.inspect`)."""
        models = models_of(model, material, runtime)
        seen = {name: self._seen(name, one, material, runtime, resume, len(models)) for name, one in models.items()}
        return insight(self.shares, seen)

    def _seen(
        self, name: str, model: Network, material: Material, runtime: Runtime, resume: Path | None, models: int
    ) -> Seen:
        """Return what one of the models shows; the budget is divided by the number of models."""
        clean = material.clean
        layers = list(neuron_layers(model, runtime.layout(clean.images[:1]).float() / 255))
        samples = {"clean": (clean, max(CHANCE, 1 / clean.classes))}
        if material.attack is not None:
            samples["poison"] = (triggered(clean, material.attack), FORGOTTEN)
        recipe = fine_tuning(self.unlearning_epochs, self.batch_size, self.unlearning_rate, "none", "constant", 0.0)
        # Made before the long work, which an option that cannot work must not follow.
        learning = replace(recipe, epochs=self.epochs, learning_rate=self.learning_rate)
        changes: dict[str, Changes] = {}
        epochs: dict[str, int] = {}
        notes: list[str] = []
        for kind, (given, enough) in samples.items():
            forgetful, history = unlearned(
                model,
                given,
                recipe,
                runtime.part((1 - LEARNING) / len(samples) / models),
                enough=enough,
                resume=stage(resume, f"{name}-{kind}"),
                description=f"{name}: {kind} unlearning",
            )
            changes[kind] = [
                neuron_weight_change([change]).cpu() for change in weight_changes(model, forgetful, layers)
            ]
            epochs[kind] = history.epochs
            notes += history.notes
        norms = gradient_norms(
            model,
            clean,
            layers,
            learning,
            runtime.part(LEARNING / models),
            stage(resume, f"{name}-learning"),
            f"{name}: fine-tuning",
        )
        return Seen(layers=layers, changes=changes, epochs=epochs, norms=norms, notes=notes)
