"""From the scores of a filter to an answer: which images carry a trigger, and do more than chance explains?

Clean images that are new to the model say what is usual. An image's p-value is its rank among them, so a clean one is
held triggered with a probability of at most the rate of false alarms, whatever the filter is (Vovk, Gammerman, Shafer,
"Algorithmic Learning in a Random World", 2005).

That share of clean images is held triggered too, so single ones accuse nobody. If all that came in were clean, they and
the clean ones would be one kind, and the highest scores of both together would belong to either by chance: how many
of them came in is hypergeometric (Fisher's exact test), ties and all, since where these scores begin is decided without
asking whose they are.

Scores may differ between classes however clean the images are. If the filter says so, the mean of clean images with
the same answer is taken away, and the rest divided by their deviation, as SCALE-UP's authors do (Guo et al., ICLR
2023). The half of the clean images that says what these are is not ranked among, so that p-values stay valid.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from unbackdoor.conformal import allowed_above
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.sift.input_filter import InputFilter
from unbackdoor.training import Runtime, logits_of, stage

SLACK = 1e-12
"""For rounding: shares of as many are equal."""
SURE = 0.01
"""The images as a whole are called triggered if chance explains at most so often that so many of the highest scores are
theirs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Filtered:
    """What is said of images that came in.

    Attributes:
        scores: of each, by which they are compared.
        answers: class that the model gives each.
        clean: how many clean images they are compared with.
        p_values: share of clean images that are at least as suspicious, each image counted among them; above 0.
        triggered: whether each is held to carry a trigger.
        false_alarms: share of clean images that may be held so.
        by_chance: probability of so many images or more among the highest scores, if all were clean.
        least: for each class, the share of clean images that have scores as high as the highest of its images can be:
            with a lower rate of false alarms none of them can be held.
    """

    scores: Float[Tensor, "n"]
    answers: Int[Tensor, "n"]
    clean: int
    p_values: Float[Tensor, "n"]
    triggered: Bool[Tensor, "n"]
    false_alarms: float
    by_chance: float
    least: Float[Tensor, "k"]

    @property
    def blind(self) -> Bool[Tensor, "k"]:
        """Of which classes no image can be held."""
        return self.least > self.false_alarms + SLACK

    @property
    def verdict(self) -> bool | None:
        """Whether more of the highest scores are theirs than chance explains; None: no image can be held."""
        return None if bool(self.blind.all()) else self.by_chance <= SURE


def compared_of(method: InputFilter, clean: int) -> int:
    """Return with how many of so many clean images a filter's scores are compared."""
    return clean // 2 if method.standardised else clean


def check_enough(compared: int, false_alarms: float) -> None:
    """Refuse a share of false alarms that is none, or that so few clean images to compare with cannot show.

    Raises:
        InputError: it lies not above 0 and below 1, or there are too few clean images for it.
    """
    if not 0 < false_alarms < 1:
        raise InputError(f"the share of false alarms lies above 0 and below 1, found {false_alarms}")
    if not allowed_above(false_alarms, compared):
        raise InputError(
            f"{compared} clean images to compare with allow a share of false alarms of {1 / (1 + compared):.3g} or"
            f" more, found {false_alarms:g}; give more clean images, or raise it"
        )


def filter_images(
    method: InputFilter,
    model: Network,
    images: UInt8[Tensor, "n c h w"],
    clean: UInt8[Tensor, "m c h w"],
    runtime: Runtime,
    false_alarms: float,
    resume: Path | None = None,
) -> Filtered:
    """Score images and clean ones, and say which of the former are triggered.

    Args:
        method: filter.
        model: what the images are for; not changed.
        images: that came in, one or more.
        clean: images that are new to the model.
        runtime: device, precision, seed.
        false_alarms: share of clean images that may be held triggered, above 0 and below 1.
        resume: file beside which scores are kept, through which an interrupted run goes on; see `InputFilter.score`.

    Raises:
        InputError: images of another size than the model's; see `check_enough`.
        ResumeError: what is kept is damaged, or of another run.
    """
    compared = compared_of(method, len(clean))
    check_enough(compared, false_alarms)
    # The clean ones first: they are few.
    usual = method.score(model, clean, runtime, stage(resume, "clean"))
    scores = method.score(model, images, runtime, resume)
    settled = runtime.settle(copy.deepcopy(model))
    answers = logits_of(settled, images, runtime).argmax(1).cpu()
    classes = torch.arange(len(model.description.class_names))
    tops = torch.full(classes.shape, math.inf if method.highest is None else method.highest)
    if method.standardised:
        known = logits_of(settled, clean, runtime).argmax(1).cpu()
        order = torch.randperm(len(clean), generator=runtime.generator("halves of the clean images"))
        ranked, learnt = order.tensor_split([compared])
        spread = usual[learnt], known[learnt]
        scores, tops = standardised(scores, answers, *spread), standardised(tops, classes, *spread)
        usual = standardised(usual[ranked], known[ranked], *spread)
    return compared_with_clean(scores, answers, usual, false_alarms, tops)


def standardised(
    scores: Float[Tensor, "n"], answers: Int[Tensor, "n"], clean: Float[Tensor, "m"], clean_answers: Int[Tensor, "m"]
) -> Float[Tensor, "n"]:
    """Return by how many deviations each score exceeds those of clean images with the same answer.

    To the clean images of each class one is added that is as all of them are in the mean, so that a class with few
    or none has a deviation too.

    Args:
        scores: of images.
        answers: their classes.
        clean: scores of one or more clean images.
        clean_answers: their classes.
    """
    clean = clean.double()
    classes = 1 + int(torch.cat([answers, clean_answers]).max())
    counts = 1 + torch.bincount(clean_answers, minlength=classes)
    mean = (torch.bincount(clean_answers, clean, classes) + clean.mean()) / counts
    squares = torch.bincount(clean_answers, (clean - mean[clean_answers]).square(), classes)
    variance = (squares + clean.var(correction=0)) / counts
    return (scores.double() - mean[answers]) / variance[answers].sqrt().clamp_min(1e-9)


def compared_with_clean(
    scores: Float[Tensor, "n"],
    answers: Int[Tensor, "n"],
    clean: Float[Tensor, "m"],
    false_alarms: float,
    tops: Float[Tensor, "k"],
) -> Filtered:
    """Say which images are triggered.

    Args:
        scores: of the images, one or more.
        answers: class that the model gives each.
        clean: of clean images, by the same filter.
        false_alarms: share of clean images that may be held triggered, above 0 and below 1.
        tops: the highest score that an image of each class can have.

    Raises:
        InputError: see `check_enough`.
    """
    check_enough(len(clean), false_alarms)
    p_values = ranks(scores, clean)
    return Filtered(
        scores=scores,
        answers=answers,
        clean=len(clean),
        p_values=p_values,
        triggered=p_values <= false_alarms + SLACK,
        false_alarms=false_alarms,
        by_chance=chance_of(scores, clean, false_alarms),
        least=ranks(tops, clean),
    )


def ranks(scores: Float[Tensor, "n"], clean: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
    """Return for each score the share that is at least as high, among the clean ones and itself."""
    below = torch.searchsorted(clean.double().sort().values, scores.double(), right=False)
    return (1 + len(clean) - below).double() / (1 + len(clean))


def chance_of(scores: Float[Tensor, "n"], clean: Float[Tensor, "m"], share: float) -> float:
    """Return how probable so many of the images are among the highest scores of all, if they are as the clean ones.

    Args:
        scores: of the images.
        clean: of clean images.
        share: of all that counts as the highest ones; less where more have equal scores, and if even the highest score
            has more, those that have it.
    """
    from scipy.stats import hypergeom

    together = torch.cat([scores.double(), clean.double()])
    descending = together.sort(descending=True).values
    cut = descending[min(len(together) - 1, allowed_above(share, len(together) - 1))]
    top = together > cut if bool(descending[0] > cut) else together == descending[0]
    came = int(top[: len(scores)].sum())
    return min(1.0, float(hypergeom.sf(came - 1, len(together), int(top.sum()), len(scores))))
