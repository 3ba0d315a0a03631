"""MESA: learn the distribution of the triggers that lead to a class, not one of them.

Qiao, Yang, Li, "Defending Neural Backdoors via Generative Distribution Modeling" (NeurIPS 2019). A backdoor answers to
more patches than the attacker's own. The max-entropy staircase approximator models all that work: for each threshold
beta a generator with as much entropy as it can have while its triggers reach beta (see `sub_models`), and a mixture of
these (see `trigger_distribution`). Entropy is estimated by mutual information (see `information`). A class is suspected
if the triggers drawn for it lead images of the other classes there.

All thresholds and all classes that are looked at are trained together. A short search for one patch a class comes first
(see `patch_search`). It chooses the `finalists` that are looked at, and among several sizes of the trigger. Its cost
grows with the number of classes; that of the training does not.

Where the authors' code differs: it sweeps the classes one after the other; its clean samples are test images, ours the
defender's; each batch has one place for all triggers, and never the last row and column, here each image has its own;
noise comes from the uniform distribution, here from the Gaussian, as on the authors' poster; the network T ends in a
leaky ReLU, which bounds its estimate, here it does not; information is that about the trigger without noise, which has
no finite value, here that about the trigger with the noise that training adds anyway; batch normalisation ends with
moving averages, here with the statistics of one large sample. A schedule counts steps, not passes over the samples, so
that few samples can do; 620 are the 10 passes over 8,000 images. Its sweep draws the attacker's own trigger for every
class; there is no such thing here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.scan.base import Finding, Reconstruction, Scanner
from unbackdoor.scan.patch_search import search_patches
from unbackdoor.scan.screening import worth_searching
from unbackdoor.scan.sub_models import Schedule, train_sub_models
from unbackdoor.scan.trigger_distribution import TriggerDistribution
from unbackdoor.training import Runtime

STARTS, SCREENING_STEPS, SCREENING_BATCH = 4, 40, 16
"""Of the search that comes before: patches a class, steps, and images a patch and step."""
SCREENING = 0.2
"""Share of a budget that it may take."""


@dataclass(frozen=True, kw_only=True)
class MESA(Scanner):
    """Learn generators of triggers for each class; a class whose triggers work is suspected.

    Attributes:
        sizes: sides of the trigger in pixels that are tried; one if it is known.
        betas: thresholds on the success of triggers, one sub-model each; different ones between 0 and 1.
        steps: of training, 1 or more.
        batch_size: images a sub-model and step, 2 or more.
        learning_rate: of Adam, for generators and mutual information.
        alpha: weight of the entropy, 0 or more.
        noise: standard deviation of the noise on triggers in training, pixel units, above 0.
        hidden: features of a layer of the networks.
        finalists: classes for which generators are trained, the most suspicious ones of a short search; 0: none, so the
            search alone judges and no trigger is shown.
        threshold: on the share of images of other classes that triggers lead to a class, 0 to 1.
        most_classes: for which the short search is done; if there are more, those to which a small change of all images
            leads best (see `screening`), so that a scan's cost does not grow by a search for each class.
    """

    sizes: tuple[int, ...] = (3,)
    betas: tuple[float, ...] = (0.9, 0.8, 0.5)
    steps: int = 620
    batch_size: int = 128
    learning_rate: float = 2e-4
    alpha: float = 0.1
    noise: float = 0.1
    hidden: int = 512
    finalists: int = 3
    threshold: float = 0.5
    most_classes: int = 16

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or len(set(self.sizes)) < len(self.sizes):
            raise InputError(f"MESA: sizes are different numbers of pixels, 1 or more, found {self.sizes}")
        if not self.betas or not all(0 < beta < 1 for beta in self.betas) or len(set(self.betas)) < len(self.betas):
            raise InputError(f"MESA: betas are different numbers between 0 and 1, found {self.betas}")
        if self.most_classes < 3:
            raise InputError(f"MESA compares at least 3 classes, found {self.most_classes} as the most")
        counts = (self.steps, self.hidden, self.finalists, self.batch_size)
        if min(self.steps, self.hidden) < 1 or self.finalists < 0 or self.batch_size < 2:
            raise InputError(
                "MESA: steps and hidden features must be 1 or more, finalists 0 or more and the batch size 2 or more,"
                f" found {', '.join(map(str, counts))}"
            )
        rates = (self.learning_rate, self.noise)
        if not all(0 < rate < math.inf for rate in rates) or not 0 <= self.alpha < math.inf:
            raise InputError(
                "MESA: learning rate and noise must be positive numbers and alpha a number of 0 or more, found"
                f" {rates} and {self.alpha}"
            )
        if not 0 <= self.threshold <= 1:
            raise InputError(f"MESA: the threshold must lie between 0 and 1, found {self.threshold}")

    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        """Return the verdict (see `Scanner.scan`)."""
        clean = data.need_clean("MESA").to(runtime.place)
        share = SCREENING if self.finalists else 1.0
        searched, runtime = worth_searching(model, clean, self.most_classes, runtime)
        classes = searched.cpu()
        screened = screen(model, clean, classes, self.sizes, max(self.betas), runtime.part(share))
        best = screened.success[classes].argsort(descending=True)[: self.finalists]
        finalists = classes[best].tolist()
        found: list[TriggerDistribution] = []
        steps = self.steps
        if finalists:
            found, steps = self.distributions(model, clean, finalists, screened.size, runtime.part(1 - share))
        found.sort(key=lambda one: float(one.success.max()), reverse=True)
        reached = screened.success.clone()
        for one in found:
            reached[one.target] = one.success.max()
        suspected = tuple(int(c) for c in reached.argsort(descending=True, stable=True) if reached[c] > self.threshold)
        # Where patches of this size lead to most classes they are no evidence against any of them.
        enough = 2 * len(suspected) <= clean.classes
        return Finding(
            backdoored=bool(suspected) if enough else None,
            suspected=suspected if enough else (),
            calibrated=False,
            anomaly=reached,
            threshold=self.threshold,
            # Of the search alone they would be rough, and take the place of better ones in the verdict.
            reconstructions=_reconstructions(screened, found, clean, runtime) if found else (),
            distributions=tuple(found),
            reason=self._reason(screened.size, reached, suspected, enough),
            shortened=screened.shortened or steps < self.steps,
            evidence={"searched": len(classes), **_evidence(screened, found)},
        )

    def distributions(
        self, model: nn.Module, clean: ImageSet, targets: list[int], size: int, runtime: Runtime
    ) -> tuple[list[TriggerDistribution], int]:
        """Return what is learned of the triggers of that size for each target, in the order of the targets.

        The number of steps that the budget allowed comes last.

        Args:
            model: frozen, in evaluation mode, on the runtime's device.
            clean: samples, on that device.
            targets: classes.
            size: side of a trigger in pixels.
            runtime: device, precision, seed and budget.
        """
        schedule = Schedule(
            betas=self.betas,
            shape=(clean.shape[0], size, size),
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            alpha=self.alpha,
            noise=self.noise,
            hidden=self.hidden,
        )
        return train_sub_models(model, clean, targets, schedule, runtime)

    def _reason(self, size: int, reached: Float[Tensor, "k"], suspected: tuple[int, ...], enough: bool) -> str:
        """Return the verdict in one sentence."""
        share, patch = f"{100 * float(reached.max()):.0f} %", f"{size} x {size} pixels"
        over = f"threshold {100 * self.threshold:g} %"
        if not enough:
            return (
                f"patches of {patch} lead images to more than half of the classes ({over}), which tells nothing; try"
                " smaller ones"
            )
        if suspected:
            return f"patches of {patch} made for class {suspected[0]} lead {share} of the other images there ({over})"
        return (
            f"no evidence of a patch that works everywhere found by MESA: the most that those of {patch} lead to a"
            f" class is {share} of the other images ({over})"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Screened:
    """What the search that comes before found.

    Attributes:
        size: of the trigger that was chosen.
        patches: the best of each class, of that size.
        success: of these, 0 to 1; 0 of a class that was not searched.
        tried: the success at every size.
        shortened: whether a budget cut the search short.
    """

    size: int
    patches: Float[Tensor, "k c p p"]
    success: Float[Tensor, "k"]
    tried: dict[int, Float[Tensor, "k"]]
    shortened: bool


def screen(
    model: nn.Module,
    clean: ImageSet,
    classes: Int[Tensor, "m"],
    sizes: tuple[int, ...],
    beta: float,
    runtime: Runtime,
) -> Screened:
    """Search for one patch for each of some classes, at every size, and choose the size.

    It is the smallest at which a class is led to as often as `beta`: a larger patch holds a smaller one, and hides it.
    If there is none it is the size at which a class is furthest above the median of the classes.

    Args:
        model: frozen, in evaluation mode, on the runtime's device.
        clean: samples, on that device.
        classes: that are searched, ascending.
        sizes: sides of the trigger in pixels.
        beta: share of the images of other classes, 0 to 1.
        runtime: device, precision, seed and budget.

    Raises:
        InputError: a size is larger than the images.
    """
    channels, height, width = clean.shape
    if max(sizes) > min(height, width):
        raise InputError(f"a trigger of {max(sizes)} pixels does not fit images of {height} x {width}; lower --sizes")
    targets = classes.repeat_interleave(STARTS)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    shortened = False
    for size in sorted(sizes):
        draws = runtime.generator("mesa patches", size)
        # The same starts for every class, so that classes differ by the model alone.
        starts = torch.rand(STARTS, channels, size, size, generator=draws).repeat(len(classes), 1, 1, 1)
        part = runtime.part(1 / len(sizes))
        patches, success, steps = search_patches(model, clean, targets, starts, part, SCREENING_STEPS, SCREENING_BATCH)
        shortened = shortened or steps < SCREENING_STEPS
        best = success.cpu().view(-1, STARTS).max(1)
        found[size] = patches.cpu()[best.indices + STARTS * torch.arange(len(classes))], best.values
    size = chosen_size({size: success for size, (_, success) in found.items()}, beta)
    none, blank = torch.zeros(clean.classes), torch.zeros(clean.classes, channels, size, size)
    tried = {size: none.index_copy(0, classes, success) for size, (_, success) in found.items()}
    patches = blank.index_copy(0, classes, found[size][0])
    return Screened(size=size, patches=patches, success=tried[size], tried=tried, shortened=shortened)


def chosen_size(tried: dict[int, Float[Tensor, "k"]], beta: float) -> int:
    """Return the size of the trigger that the success of patches speaks for (see `screen`)."""
    for size in sorted(tried):
        if float(tried[size].max()) >= beta:
            return size
    return max(sorted(tried), key=lambda size: float(tried[size].max() - tried[size].quantile(0.5)))


def _reconstructions(
    screened: Screened, found: list[TriggerDistribution], clean: ImageSet, runtime: Runtime
) -> tuple[Reconstruction, ...]:
    """Return a trigger for each class, in the middle of the image."""
    known = {one.target: one for one in found}
    (channels, height, width), size = clean.shape, screened.size
    top, left = (height - size) // 2, (width - size) // 2
    made = []
    for target in range(clean.classes):
        patch, success = screened.patches[target], float(screened.success[target])
        if target in known:
            patch, success = known[target].typical(runtime.generator("typical")), float(known[target].success.max())
        mask, pattern = torch.zeros(1, height, width), torch.zeros(channels, height, width)
        mask[:, top : top + size, left : left + size] = 1
        pattern[:, top : top + size, left : left + size] = patch
        made.append(Reconstruction(target=target, mask=mask, pattern=pattern, success=success))
    return tuple(made)


def _evidence(screened: Screened, found: list[TriggerDistribution]) -> dict[str, Any]:
    """Return the numbers behind the verdict as JSON values."""

    def rounded(values: Tensor) -> list[float]:
        return [round(float(value), 4) for value in values]

    return {
        "trigger_side": screened.size,
        "screening": {str(size): rounded(success) for size, success in screened.tried.items()},
        "distributions": [
            {
                "target": one.target,
                "betas": list(one.betas),
                "success": rounded(one.success),
                "information": rounded(one.information),
                "weights": rounded(one.weights),
            }
            for one in found
        ],
    }
