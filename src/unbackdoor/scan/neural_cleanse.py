"""Neural Cleanse: invert a trigger for every class and look for a class whose trigger is unusually small.

Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks" (IEEE S&P 2019). For each
class c a mask m and a pattern p minimise CE(f((1 - m) x + m p), c) + lambda ||m||_1, where lambda rises while the
trigger succeeds and falls while it does not. A class whose mask is far smaller than those of the others is suspected.

The paper measures "far" in scaled median absolute deviations of the sizes, from 2 on. That index cannot exceed the
median over the scaled deviation: where natural triggers differ widely in size, as on digits, not even a trigger of one
pixel reaches 2. Ours is the same index of the sizes' logarithms, from 3.5 on, the usual cut for such indices (Iglewicz
and Hoaglin, "How to Detect and Handle Outliers", 1993). Both are in the finding.

All classes are optimised together as one batched problem; a class whose mask no longer shrinks leaves it. Rates and
patiences are those of BackdoorBench; the batch of 32 images a class is the paper's. Kept as tensors throughout: the
published unlearning reads mask and pattern back from rescaled pictures, which distorts them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.models.derivatives import frozen_norms
from unbackdoor.scan.base import Finding, Reconstruction, Scanner, clean_to_compare
from unbackdoor.scan.outliers import low_outliers
from unbackdoor.scan.passes import tiles
from unbackdoor.scan.screening import for_all, worth_searching
from unbackdoor.training import Runtime, affordable

STOP_SHRINK = 0.99
"""A round counts as progress if the mask shrinks below this share of the smallest so far."""

LEAST_SIZE = 0.1
"""In pixels: differences between masks that are smaller still mean nothing."""


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(Scanner):
    """Invert a trigger for each class; an unusually small one is evidence of a backdoor.

    Attributes:
        rounds: after each of which lambda is reconsidered, 1 or more.
        steps: of Adam in a round, 1 or more.
        batch_size: images a class and step.
        learning_rate: of Adam.
        success: share of images that a trigger must lead to its class, 0 to 1.
        first_lambda: weight of the mask's size at the start.
        patience: rounds of success (or of failure) before lambda rises (or falls).
        stop_patience: rounds without a smaller mask after which a class is done.
        threshold: on the anomaly index (scaled median absolute deviations of the sizes' logarithms, below the median).
        most_classes: for which triggers are inverted; if there are more, those to which a small change of all images
            leads best (see `screening`), so that a scan's cost does not grow by a search for each class.
    """

    rounds: int = 80
    steps: int = 10
    batch_size: int = 32
    learning_rate: float = 0.1
    success: float = 0.98
    first_lambda: float = 1e-3
    patience: int = 5
    stop_patience: int = 25
    threshold: float = 3.5
    most_classes: int = 16

    def __post_init__(self) -> None:
        counts = (self.rounds, self.steps, self.batch_size, self.patience, self.stop_patience)
        if min(counts) < 1:
            raise InputError(
                f"NeuralCleanse: rounds, steps, batch size and both patiences must be 1 or more, found {counts}"
            )
        if not (0 < self.learning_rate < math.inf and 0 < self.first_lambda < math.inf and 0 < self.success <= 1):
            raise InputError(
                "NeuralCleanse: learning rate and first lambda must be positive numbers and success a share above 0,"
                f" found {self.learning_rate}, {self.first_lambda} and {self.success}"
            )
        if not math.isfinite(self.threshold):
            raise InputError(f"NeuralCleanse: the threshold must be a number, found {self.threshold}")
        if self.most_classes < 3:
            raise InputError(f"NeuralCleanse compares at least 3 classes, found {self.most_classes} as the most")

    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        """Return the verdict (see `Scanner.scan`)."""
        clean = clean_to_compare(data, "Neural Cleanse").to(runtime.place)
        searched, runtime = worth_searching(model, clean, self.most_classes, runtime)
        masks, patterns, success, rounds = self._invert(model, clean, searched, runtime)
        searched = searched.cpu()
        # A class whose trigger never succeeded has no size to compare: it is not small, whatever its mask.
        found = success >= self.success
        sizes = torch.where(found, masks.sum((1, 2, 3)), float(masks[0].numel()))
        logarithms = sizes[searched].clamp_min(LEAST_SIZE).log()
        anomaly = for_all(low_outliers(logarithms), searched, clean.classes)
        suspected = [
            int(c)
            for c in anomaly.argsort(descending=True)
            if anomaly[c] > self.threshold and success[c] >= self.success
        ]
        enough = 2 * int(found.sum()) > len(searched)
        return Finding(
            backdoored=bool(suspected) if enough else None,
            suspected=tuple(suspected) if enough else (),
            calibrated=False,
            anomaly=anomaly,
            threshold=self.threshold,
            reconstructions=tuple(
                Reconstruction(target=c, mask=masks[c], pattern=patterns[c], success=float(success[c]))
                for c in range(clean.classes)
            ),
            reason=_reason(suspected, anomaly, sizes[searched].median(), sizes, self.threshold)
            if enough
            else f"only {int(found.sum())} of {len(searched)} classes have a trigger that works; allow more rounds",
            numbers=for_all(-logarithms, searched, clean.classes)[None],
            shortened=rounds < self.rounds,
            evidence={
                "searched": len(searched),
                "paper_anomaly": [
                    round(float(value), 4) for value in for_all(low_outliers(sizes[searched]), searched, clean.classes)
                ],
            },
        )

    def _invert(
        self, model: nn.Module, clean: ImageSet, searched: Int[Tensor, "m"], runtime: Runtime
    ) -> tuple[Float[Tensor, "k 1 h w"], Float[Tensor, "k c h w"], Float[Tensor, "k"], int]:
        """Return each class's smallest successful mask (the last one if none succeeds), its pattern and success.

        The number of rounds that the budget allowed comes last.
        """
        draws = runtime.generator("neural cleanse")
        search = _Search(self, model, clean, searched, runtime)
        trial = _Search(self, model, clean, searched, runtime)
        rows = torch.arange(min(self.batch_size, len(clean)))
        rounds = affordable(self.rounds, self.steps, lambda: trial.step(trial.active(), rows), runtime)  # noqa: F821 - deleted below
        del trial
        with runtime.progress.bar("inverting triggers", rounds) as advance:
            for _ in range(rounds):
                active = search.active()
                if len(active) == 0:
                    break
                hits = torch.zeros(len(active), device=clean.device)
                for _ in range(self.steps):
                    rows = torch.randint(len(clean), (self.batch_size,), generator=draws)
                    hits += search.step(active, rows)
                search.reconsider(active, hits / self.steps)
                advance()
        return *search.best(), rounds


class _Search:
    """The state of the inversion, one row a class that is searched."""

    def __init__(
        self,
        options: NeuralCleanse,
        model: nn.Module,
        clean: ImageSet,
        searched: Int[Tensor, "m"],
        runtime: Runtime,
    ) -> None:
        self.options, self.model, self.clean, self.runtime = options, model, clean, runtime
        m, (channels, height, width) = len(searched), clean.shape
        draws = runtime.generator("neural cleanse start")
        place = clean.device
        self.classes = searched.to(place)
        # The same start for every class, so that classes differ by the model alone.
        self.start = tuple(torch.rand(1, count, height, width, generator=draws) for count in (1, channels))
        self.mask_raw, self.pattern_raw = (
            torch.atanh(one.expand(m, -1, -1, -1).mul(2).sub(1).mul(0.999)).to(place).clone().requires_grad_(True)
            for one in self.start
        )
        self.optimizer = torch.optim.Adam([self.mask_raw, self.pattern_raw], options.learning_rate, betas=(0.5, 0.9))
        self.weight = torch.full((m,), options.first_lambda, device=place)
        self.smallest = torch.full((m,), torch.inf, device=place)
        self.best_mask = torch.ones(m, 1, height, width, device=place)
        self.best_pattern = torch.zeros(m, channels, height, width, device=place)
        self.best_success = torch.zeros(m, device=place)
        self.good, self.bad, self.idle = (torch.zeros(m, dtype=torch.long, device=place) for _ in range(3))
        self.rose, self.fell = (torch.zeros(m, dtype=torch.bool, device=place) for _ in range(2))

    def active(self) -> Int[Tensor, "a"]:
        """Return the rows of the classes whose search goes on."""
        done = (self.idle >= self.options.stop_patience) & self.rose & self.fell
        return (~done).nonzero().squeeze(1)

    def triggers(self, those: Int[Tensor, "a"]) -> tuple[Float[Tensor, "a 1 h w"], Float[Tensor, "a c h w"]]:
        """Return the present masks and patterns of these rows, in [0, 1]."""
        return (self.mask_raw[those].tanh() + 1) / 2, (self.pattern_raw[those].tanh() + 1) / 2

    def step(self, those: Int[Tensor, "a"], rows: Int[Tensor, "b"]) -> Float[Tensor, "a"]:
        """Do one step of Adam for these classes (rows of the state) on the images at `rows`; return each one's hits.

        Hits are shares of the images, 0 to 1.
        """
        images = self.runtime.layout(self.clean.images[rows.to(self.clean.device)]).float() / 255
        masks, patterns = self.triggers(those)
        # Of the cross-entropy: the part of the loss that goes through the model.
        slopes = torch.zeros_like(masks), torch.zeros_like(patterns)
        hits = torch.zeros(len(those), device=self.clean.device)
        with frozen_norms(self.model):
            for these, some in tiles(len(those), len(images), images.shape, self.runtime):
                wanted = self.classes[those[these]]
                answers, found = self._slopes(images[some], masks[these], patterns[these], wanted)
                hits[these] += answers / len(images)
                for slope, more in zip(slopes, found):
                    slope[these] += more / len(images)
        loss = (masks * slopes[0]).sum() + (patterns * slopes[1]).sum()
        loss = loss + (self.weight[those] * masks.sum((1, 2, 3))).sum()
        gradients = torch.autograd.grad(loss, [self.mask_raw, self.pattern_raw])
        self.mask_raw.grad, self.pattern_raw.grad = gradients
        self.optimizer.step()
        return hits

    def _slopes(
        self,
        images: Float[Tensor, "b c h w"],
        masks: Float[Tensor, "a 1 h w"],
        patterns: Float[Tensor, "a c h w"],
        classes: Int[Tensor, "a"],
    ) -> tuple[Int[Tensor, "a"], tuple[Tensor, ...]]:
        """Return the number of hits of each trigger, and the cross-entropy's gradients, summed over the images."""
        triggers = [value.detach().requires_grad_(True) for value in (masks, patterns)]
        stamped = torch.lerp(images[None], triggers[1][:, None], triggers[0][:, None]).flatten(0, 1)
        wanted = classes.repeat_interleave(len(images))
        with self.runtime.autocast():
            logits = self.model(self.runtime.layout(stamped)).float()
        found = torch.autograd.grad(F.cross_entropy(logits, wanted, reduction="sum"), triggers)
        return (logits.argmax(1) == wanted).view(len(classes), -1).sum(1), found

    @torch.no_grad()
    def reconsider(self, those: Int[Tensor, "a"], success: Float[Tensor, "a"]) -> None:
        """Keep masks that are smaller and succeed, and move each lambda; of these rows."""
        masks, patterns = self.triggers(those)
        sizes = masks.sum((1, 2, 3))
        enough = success >= self.options.success
        better = enough & (sizes < self.smallest[those])
        progress = enough & (sizes < STOP_SHRINK * self.smallest[those])
        self.idle[those] = torch.where(progress, 0, self.idle[those] + 1)
        improved = those[better]
        self.smallest[improved], self.best_success[improved] = sizes[better], success[better]
        self.best_mask[improved], self.best_pattern[improved] = masks[better], patterns[better]
        self.good[those] = torch.where(enough, self.good[those] + 1, 0)
        self.bad[those] = torch.where(enough, 0, self.bad[those] + 1)
        rise, fall = self.good >= self.options.patience, self.bad >= self.options.patience
        self.weight[rise] *= 2.0
        self.weight[fall] /= 2.0**1.5
        self.rose |= rise
        self.fell |= fall
        self.good[rise], self.bad[fall] = 0, 0

    @torch.no_grad()
    def best(self) -> tuple[Float[Tensor, "k 1 h w"], Float[Tensor, "k c h w"], Float[Tensor, "k"]]:
        """Return the smallest successful trigger of each of the model's classes.

        Where none succeeded it is the last one, and that of a class that was not searched the start; success is then 0.
        """
        last = self.triggers(torch.arange(len(self.smallest), device=self.smallest.device))
        succeeded = self.smallest.isfinite().view(-1, 1, 1, 1)
        k, rows = self.clean.classes, self.classes.cpu()
        mask, pattern = (
            start.expand(k, -1, -1, -1).index_copy(0, rows, torch.where(succeeded, best, other).cpu())
            for start, best, other in zip(self.start, (self.best_mask, self.best_pattern), last)
        )
        return mask, pattern, torch.zeros(k).index_copy(0, rows, self.best_success.cpu())


def _reason(
    suspected: list[int],
    anomaly: Float[Tensor, "k"],
    median: Float[Tensor, ""],
    sizes: Float[Tensor, "k"],
    threshold: float,
) -> str:
    """Return the verdict in one sentence."""
    if suspected:
        first = suspected[0]
        return (
            f"a trigger of {float(sizes[first]):.1f} pixels leads to class {first}; the median class needs"
            f" {float(median):.1f} (anomaly index {float(anomaly[first]):.1f}, threshold {threshold:g})"
        )
    return (
        f"no evidence of a small fixed trigger found by Neural Cleanse: the largest anomaly index is"
        f" {float(anomaly.max()):.1f} (threshold {threshold:g})"
    )
