"""D-BR: unlearn what is held poisoned and relearn what is held clean, in turns.

Chen, Wu, Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples" (NeurIPS 2022). It has no
clean data, but the training data as found, of which FCT holds some rows clean and some poisoned. Each round is one
epoch of gradient ascent on the latter, and then one of descent on the former.

Ascent has no bound, so that further rounds take accuracy away once the backdoor is gone. The authors' program returns
the round with the largest difference of test accuracy and attack success; BackdoorBench's returns the last. Ours sees
no test data, and

- climbs the loss of each row up to that of chance, log(number of classes), and no further,
- ends as soon as most rows held poisoned are forgotten and a round forgets next to no more of them, and
- leaves the statistics of batch normalisation as they are: the rows that FCT holds clean are those that change least
  when they are moved and turned, and have statistics of their own.

Both stages share one optimiser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.data.augment import AUGMENTATIONS
from unbackdoor.models import Network
from unbackdoor.purify.base import Needed, Purifier
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.sift import FCT, Suspicion
from unbackdoor.sift.base import check_share
from unbackdoor.training import Batch, History, Hook, Recipe, Runtime, fit, logits_of, stage
from unbackdoor.training.recipe import refuse_mixing

SIFTING = 0.4
"""Share of a budget for finding out what rows are held to be."""
FORGOTTEN, NO_MORE = 0.5, 0.01
"""Share of the rows held poisoned that still get their label at the end, and by how much the last round lowered it, at
most."""


@dataclass(frozen=True, kw_only=True)
class DBR(Purifier):
    """Unlearn rows held poisoned and relearn rows held clean, in turns.

    Attributes:
        rounds: of one epoch each, at most.
        batch_size: images a step.
        learning_rate: of SGD, constant.
        augmentation: of both; see `Recipe`.
        clean_share: of the rows, those that FCT scores lowest, held clean.
        poisoned_share: of the rows, those that FCT scores highest, held poisoned.
    """

    needs: ClassVar[frozenset[Needed]] = frozenset({"untrusted"})
    # What it goes by is what FCT says; there was no weight decay before, and no bound and no end of unlearning.
    revision: ClassVar[int] = FCT.revision + 2

    rounds: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-4
    augmentation: str = "crop-flip"
    clean_share: float = 0.20
    poisoned_share: float = 0.05

    def __post_init__(self) -> None:
        check_share("DBR", clean_share=self.clean_share, poisoned_share=self.poisoned_share)
        refuse_mixing("DBR", self.augmentation)
        # What a recipe refuses, it refuses before the sifting.
        self._recipe()

    def _recipe(self) -> Recipe:
        plain = fine_tuning(self.rounds, self.batch_size, self.learning_rate, self.augmentation, "constant")
        return replace(plain, train_mode=False)

    def sift(self, untrusted: ImageSet, runtime: Runtime, resume: Path | None) -> Suspicion:
        """Return which rows are held clean and which poisoned, by a model of the data of FCT's own."""
        sifter = FCT(clean_share=self.clean_share, poisoned_share=self.poisoned_share)
        return sifter.score(DefenderData(untrusted=untrusted), runtime.part(SIFTING), resume=stage(resume, "sift"))

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Unlearn and relearn with `model` in place (see `Purifier.repair`)."""
        untrusted = data.need_untrusted("DBR")
        clean, poisoned = (untrusted.subset(rows) for rows in self.sift(untrusted, runtime, resume).held())
        # The loop times steps downhill only; those uphill cost as much an image.
        downhill = len(clean) / (len(clean) + len(poisoned))
        part = runtime.part((1 - SIFTING) * downhill)
        hook = UnlearnFirst(poisoned)
        history = fit(model, clean, self._recipe(), part, hook=hook, resume=resume, description="DBR")
        note = (
            f"DBR held {len(clean)} of {len(untrusted)} images clean and {len(poisoned)} poisoned, and unlearned these"
            f" in {history.epochs} rounds, after which {100 * hook.known:.1f} % of them get their label."
        )
        return replace(history, notes=(*history.notes, note))


class UnlearnFirst(Hook):
    """Climbs the loss on other images, once through, before each epoch, until they are forgotten.

    Args:
        poisoned: what is unlearned.

    Attributes:
        known: share of it that got its label after the last epoch.
    """

    def __init__(self, poisoned: ImageSet) -> None:
        self.poisoned = poisoned
        self.rounds = 0
        self.known = 1.0
        self.due = True

    def identity(self) -> object:
        """Return what is unlearned."""
        return "DBR", self.poisoned.digest()

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Move the images to the device."""
        super().begin(model, recipe, runtime)
        self.poisoned = self.poisoned.to(runtime.place)

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do one step downhill, at the beginning of an epoch after those uphill, and return its loss."""
        if self.due:
            self.unlearn(model, optimizer)
            self.due = False
        return super().update(model, batch, optimizer)

    def unlearn(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Go through all images once, in random order."""
        draws = self.runtime.generator("unlearning", self.rounds)
        augmentation = AUGMENTATIONS[self.recipe.augmentation]
        order = torch.randperm(len(self.poisoned), generator=draws).to(self.runtime.place)
        for rows in torch.tensor_split(order, math.ceil(len(order) / self.recipe.batch_size)):
            draw = augmentation.draw((len(rows), *self.poisoned.shape), draws)
            images = self.runtime.layout(augmentation.apply(self.poisoned.images[rows], draw))
            with self.runtime.autocast():
                losses = F.cross_entropy(model(images), self.poisoned.labels[rows], reduction="none")
            optimizer.zero_grad(set_to_none=True)
            (-losses.clamp_max(math.log(self.poisoned.classes)).mean()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def for_timing(self) -> UnlearnFirst:
        """Return a copy that never unlearns: whoever sets the budget counts that apart."""
        copied = UnlearnFirst(self.poisoned)
        copied.due = False
        return copied

    def finished(self, model: nn.Module) -> bool:
        """Note that the next epoch begins with unlearning, and return whether there is nothing left to unlearn."""
        before = self.known
        right = logits_of(model, self.poisoned.images, self.runtime).argmax(1) == self.poisoned.labels
        self.known = float(right.float().mean())
        self.rounds += 1
        self.due = True
        return self.known <= FORGOTTEN and before - self.known <= NO_MORE

    def state_dict(self) -> dict[str, Any]:
        """Return the number of finished rounds, and what is still known after them."""
        return {"rounds": self.rounds, "known": self.known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back both."""
        self.rounds, self.known = state["rounds"], state["known"]
