"""FCT: poisoned images are those whose features move most when the image is turned and shifted.

Chen, Wu, Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples" (NeurIPS 2022), the metric
FCT and its module SD. A model of the poisoned data is fine-tuned so that the mean features of its classes point apart,

    L_intra = mean over the K x K matrix of cosines between mean features of classes, its diagonal set to 0,

and each row is then scored by how far a random rotation and shift tau moves its features phi,

    Delta(x) = mean over the features of (phi(x) - phi(tau(x)))^2.

The rows with the lowest fifth are held clean, those with the highest twentieth poisoned: always, also in clean data.

Six things differ from the published code. The loss leaves the features' scale free and can shrink them until nothing
moves, which users of that code met; so the spread of Delta,

    (95 % quantile - median) / median,

is measured on some rows before the first and after each epoch, the weights with the largest one are kept, and
fine-tuning ends after two epochs without a larger one. Rows without any features are counted. Delta is the mean over
several draws of tau, as one draw ranks noisily. What is drawn for a row depends on the seed and its pixels alone, so
its score does not depend on its company. The split is made once, from the scores that are reported; the published code
draws tau anew between threshold and split. Features are in the runtime's precision (published: single), and their
differences in float32.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.data.augment import Augmentation, Rotate, Translate
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.sift.base import check_share
from unbackdoor.sift.lots import lots
from unbackdoor.sift.observed import Change, Observed, feeding, run_over
from unbackdoor.sift.quick_model import quick_model
from unbackdoor.sift.row_sifter import RowSifter
from unbackdoor.training import Batch, Hook, Recipe, Runtime, fit, stage

DEGREES, FRACTION = 180.0, 0.2
"""tau of the paper: any angle, and a shift by up to a fifth of the side in both directions."""

TURN = Augmentation((Rotate(degrees=DEGREES), Translate(fraction=FRACTION)))

LOTS = 3
"""Numbers that a draw of tau takes: the angle and two shifts."""

FIRST_STEP = Recipe(
    epochs=2,
    learning_rate=0.01,
    nesterov=False,
    schedule="constant",
    label_smoothing=0.0,
    ema=0.0,
    augmentation="none",
    low_resolution=0.0,
)
"""How the paper trains a model of the data; its cosine with a period of 100 epochs has hardly begun to fall."""

PROBE = 1000
"""Rows on which the spread is measured."""

PATIENCE = 2
"""Epochs without a larger spread after which fine-tuning ends."""


@dataclass(frozen=True, kw_only=True)
class FCT(RowSifter):
    """Score rows by how far turning and shifting the image moves its features.

    Attributes:
        epochs: of fine-tuning that pushes the classes' mean features apart, at most; 0 leaves the model as it is.
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

    # Since turns are drawn for each row from its pixels, and no epoch is kept in which more rows lie still.
    revision: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_share("FCT", clean_share=self.clean_share, poisoned_share=self.poisoned_share)
        if self.draws < 1 or self.epochs < 0:
            raise InputError(f"FCT: draws must be 1 or more and epochs 0 or more, found {self.draws} and {self.epochs}")
        self._recipe()

    def _recipe(self) -> Recipe:
        epochs = max(1, self.epochs)
        return replace(FIRST_STEP, epochs=epochs, batch_size=self.batch_size, learning_rate=self.learning_rate)

    def learn(self, rows: ImageSet, runtime: Runtime, resume: Path | None) -> Network:
        """Train a network as briefly as the paper does (see `Sifter.learn`)."""
        return quick_model(rows, runtime, recipe=FIRST_STEP, resume=stage(resume, "quick"))

    @property
    def adapts(self) -> bool:
        """Whether there is fine-tuning."""
        return self.epochs > 0

    def shares(self) -> tuple[float, float]:
        """Return the options (see `RowSifter.shares`)."""
        return self.clean_share, self.poisoned_share

    def adapted(self, seen: Observed) -> tuple[Network, dict[str, Any]]:
        """Fine-tune a copy of the model (see `RowSifter.adapted`)."""
        model, spreads = self.push_apart(seen) if self.adapts else (seen.model, [])
        return model, {"spreads": spreads}

    def measure(self, seen: Observed, model: Network) -> tuple[Float[Tensor, "n"], dict[str, int]]:
        """Return Delta of each row, and how many rows have no features at all (see `RowSifter.measure`)."""
        runtime, images = seen.runtime, seen.rows.images
        head = seen.head(model)
        before = seen.features
        if model is not seen.model:
            before, _ = run_over(model, head, images, runtime, "FCT: features")
        drawn = torch.split(lots(images, runtime, "fct tau", LOTS * self.draws), LOTS, dim=1)
        total = torch.zeros(len(before))
        for number, chance in enumerate(drawn, start=1):
            after, _ = run_over(model, head, images, runtime, f"FCT: draw {number}", turning(chance))
            total += movement(before, after)
        return total / self.draws, {"rows_without_features": int((before == 0).all(1).sum())}

    def reason(self, score: float) -> str:
        """Tell the movement (see `RowSifter.reason`)."""
        return f"features move by {score:.3g} when the image is turned and shifted"

    def told(self, poisoned: int) -> str:
        """Say that it is a share (see `RowSifter.told`)."""
        return f"the {poisoned} rows whose features move most are held poisoned, by their number alone"

    def push_apart(self, seen: Observed) -> tuple[Network, list[float]]:
        """Return a copy of the model whose classes' mean features were pushed apart, and the spreads on the way."""
        model = copy.deepcopy(seen.model).requires_grad_(True)
        head = seen.head(model)
        name = next(name for name, one in model.named_modules() if one is head)
        probe = torch.randperm(len(seen.rows), generator=seen.runtime.generator("fct", "probe"))[:PROBE]
        hook = PushApart(name, seen.rows.classes, seen.rows.images[probe])
        fit(
            model,
            seen.rows,
            self._recipe(),
            seen.runtime.part(0.6),
            hook=hook,
            resume=stage(seen.resume, "fct"),
            description="FCT: pushing classes apart",
        )
        model.load_state_dict(hook.best)
        return model.eval().requires_grad_(False), [round(value, 4) for value in hook.spreads]


def turning(chance: Float[Tensor, "n 3"]) -> Change:
    """Return the change of a batch by tau, with the three numbers in [0, 1) that were drawn for each row."""
    return lambda batch, part: turned(batch, chance[part])


def turned(images: Float[Tensor, "b c h w"], chance: Float[Tensor, "b 3"]) -> Float[Tensor, "b c h w"]:
    """Return the images turned by the angle and shifted as the numbers in [0, 1) say."""
    height, width = images.shape[2:]
    angle, down, across = chance.unbind(1)
    turn = {"degrees": (DEGREES * (2 * angle - 1)).float()}
    shift = {"rows": (down * shifts(height)).long(), "columns": (across * shifts(width)).long()}
    return TURN.apply(images, (turn, shift))


def shifts(side: int) -> int:
    """Return how many shifts there are along a side of so many pixels."""
    return 2 * int(FRACTION * side) + 1


def movement(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """Return the mean squared difference of each row's features."""
    return (before - after).square().mean(1)


def spread(scores: Float[Tensor, "n"]) -> float:
    """Return how far the upper scores lie above the middle ones, in units of the latter; 0 if nothing moves."""
    middle, upper = scores.double().quantile(torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
    return float((upper - middle) / middle) if middle > 0 else 0.0


def closeness(features: Float[Tensor, "b d"], labels: Int[Tensor, "b"], classes: int) -> Float[Tensor, ""]:
    """Return L_intra: the mean over all pairs of classes of the cosine of their mean features.

    A class with itself counts as 0, and so does one that has no rows here.
    """
    members = F.one_hot(labels, classes).to(features.dtype)
    means = members.T @ features / members.sum(0).clamp_min(1)[:, None]
    unit = F.normalize(means, dim=1)
    cosines = unit @ unit.T
    return (cosines.sum() - cosines.diagonal().sum()) / classes**2


class PushApart(Hook):
    """Minimise `closeness` and nothing else, and keep the weights with the largest spread.

    Those with which more rows do not move at all than before are not kept: their features have died, and the spread
    grows beyond all as half of the rows come near to that.

    Args:
        head: name of the last linear layer, which reads the features.
        classes: of the data.
        probe: images on which the spread is measured.
    """

    def __init__(self, head: str, classes: int, probe: UInt8[Tensor, "m c h w"]) -> None:
        self.name, self.classes, self.probe = head, classes, probe
        self.spreads: list[float] = []
        self.still = 0
        self.best: dict[str, Tensor] = {}

    def identity(self) -> object:
        """Return the name and the number of classes; the rest follows from data and seed."""
        return type(self).__name__, self.classes

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Keep the model itself, as a compiled one would not notice taps that come and go, and its spread."""
        super().begin(model, recipe, runtime)
        self.model = model
        self.head = model.get_submodule(self.name)
        if not self.spreads:
            self._note()

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the closeness of the classes in the batch."""
        with feeding(self.head) as fed:
            self.model(batch.images)
        # Single precision: cosines of means differ little.
        with torch.autocast(self.runtime.place.type, enabled=False):
            return closeness(fed[0].float().flatten(1), batch.targets, self.classes)

    def finished(self, model: nn.Module) -> bool:
        """Measure the spread; return whether there were two epochs without a larger one."""
        self._note()
        return len(self.spreads) - 1 - self.spreads.index(max(self.spreads)) >= PATIENCE

    def _note(self) -> None:
        """Measure the spread, and keep the weights if it is the largest so far."""
        self.model.eval()
        chance = lots(self.probe, self.runtime, "fct spread", LOTS)
        before, _ = run_over(self.model, self.head, self.probe, self.runtime)
        after, _ = run_over(self.model, self.head, self.probe, self.runtime, change=turning(chance))
        moved = movement(before, after)
        still = int((moved == 0).sum())
        if not self.spreads:
            self.still = still
        self.spreads.append(spread(moved) if still <= self.still else 0.0)
        if self.spreads[-1] >= max(self.spreads) and still <= self.still:
            self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the spreads, the rows that lay still before, and the weights kept."""
        return {"spreads": self.spreads, "still": self.still, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.spreads, self.still, self.best = list(state["spreads"]), int(state["still"]), dict(state["best"])
