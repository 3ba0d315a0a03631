"""ACC, ASR, RA and DER, each proportion with its interval.

Definitions as in BackdoorBench (Wu et al., NeurIPS 2022) and, for DER, FT-SAM (Zhu et al., ICCV 2023). This is the one
place where the test set, the trigger and a model meet; no defence can reach it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from unbackdoor.attacks import Criterion, Trigger
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.training import Runtime, logits_of

CONFIDENCE = 0.95
"""Of all intervals."""

Ends = tuple[float, float, float]
"""A figure with the lower and the upper end of its interval."""


@dataclass(frozen=True)
class Proportion:
    """A share of successes with its 95 % Wilson interval.

    Attributes:
        successes: from 0 to `trials`.
        trials: 1 or more.
    """

    successes: int
    trials: int

    def __post_init__(self) -> None:
        if not (self.trials > 0 and 0 <= self.successes <= self.trials):
            raise InputError(f"{self.successes} successes in {self.trials} trials is no proportion")

    @property
    def value(self) -> float:
        """The share, 0 to 1."""
        return self.successes / self.trials

    @property
    def low(self) -> float:
        """Lower end of the interval, 0 to 1."""
        return self._interval()[0]

    @property
    def high(self) -> float:
        """Upper end of the interval, 0 to 1."""
        return self._interval()[1]

    def _interval(self) -> tuple[float, float]:
        from scipy.stats import binomtest

        interval = binomtest(self.successes, self.trials).proportion_ci(CONFIDENCE, method="wilson")
        return float(interval.low), float(interval.high)

    def to_json(self) -> dict[str, float | int]:
        """Return value, interval and counts."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "successes": self.successes,
            "trials": self.trials,
        }


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a model behaves on test images, with and without the trigger.

    Attributes:
        acc: share of clean test images that get their true class.
        asr: share of counted triggered images that get the class that the attacker wants; None without an attack.
        ra: share of the same images that get their true class; None without an attack.
        asr_unrounded: ASR on triggered images that were not rounded to 8 bits; None unless the trigger is one that
            rounding may destroy.
        acc_counted: ACC of the clean images whose triggered versions ASR counts, so without those of the target class;
            None without an attack. It is the ACC of papers that leave these out of the test set.
    """

    acc: Proportion
    asr: Proportion | None = None
    ra: Proportion | None = None
    asr_unrounded: Proportion | None = None
    acc_counted: Proportion | None = None

    def to_json(self) -> dict[str, dict[str, float | int]]:
        """Return what was measured."""
        measured = {
            "acc": self.acc,
            "asr": self.asr,
            "ra": self.ra,
            "asr_unrounded": self.asr_unrounded,
            "acc_counted": self.acc_counted,
        }
        return {name: share.to_json() for name, share in measured.items() if share is not None}

    @classmethod
    def from_json(cls, measured: Mapping[str, Mapping[str, Any]]) -> Evaluation:
        """Return what `to_json` described."""
        return cls(**{name: Proportion(share["successes"], share["trials"]) for name, share in measured.items()})


def triggered_images(
    test: ImageSet, trigger: Trigger, criterion: Criterion
) -> tuple[UInt8[Tensor, "m c h w"], ImageSet]:
    """Return the triggered 8-bit test images that count, and their clean originals.

    Raises:
        InputError: the trigger changes no pixel, or no image counts.
    """
    counted = criterion.counted(test.labels)
    if not bool(counted.any()):
        raise InputError(f"{test.name}: all images have the attacker's class already, so nothing can be measured")
    originals = test.subset(counted.nonzero().squeeze(1))
    triggered = trigger.to(test.device).stamp(originals.images)
    if bool((triggered == originals.images).all()):
        raise InputError(f"the trigger changes no pixel of {test.name}, so its success rate would mean nothing")
    return triggered, originals


def evaluate(
    model: nn.Module,
    test: ImageSet,
    runtime: Runtime,
    trigger: Trigger | None = None,
    criterion: Criterion | None = None,
) -> Evaluation:
    """Measure ACC and, with a trigger and a criterion, ASR and RA (both from one pass).

    Args:
        model: images in [0, 1] to logits.
        test: images that neither the attacker nor the defender has seen.
        runtime: device and precision.
        trigger: of the attack; its images are rounded to 8 bits, as files are, before the model sees them.
        criterion: of the attack.

    Raises:
        InputError: trigger without criterion or the reverse, a trigger that changes no pixel, or a criterion
            that counts no image.
    """
    if (trigger is None) != (criterion is None):
        raise InputError("an attack is evaluated with its trigger and its success criterion, not with one alone")
    test = test.to(runtime.place)
    runtime.settle(model)
    correct = logits_of(model, test.images, runtime).argmax(1) == test.labels
    acc = Proportion(int(correct.sum()), len(test))
    if trigger is None or criterion is None:
        return Evaluation(acc=acc)
    triggered, originals = triggered_images(test, trigger, criterion)
    answers = logits_of(model, triggered, runtime).argmax(1)
    fooled = int((answers == criterion.wanted(originals.labels)).sum())
    recovered = int((answers == originals.labels).sum())
    unrounded = None
    if not trigger.survives_rounding:
        exact = _answers_unrounded(model, trigger, originals, runtime)
        unrounded = Proportion(int((exact == criterion.wanted(originals.labels)).sum()), len(originals))
    return Evaluation(
        acc=acc,
        asr=Proportion(fooled, len(originals)),
        ra=Proportion(recovered, len(originals)),
        asr_unrounded=unrounded,
        acc_counted=Proportion(int(correct[criterion.counted(test.labels)].sum()), len(originals)),
    )


@torch.no_grad()
def _answers_unrounded(model: nn.Module, trigger: Trigger, originals: ImageSet, runtime: Runtime) -> Int[Tensor, "n"]:
    """Return the classes that the model gives to triggered images as they are before any rounding."""
    answers = []
    for images in torch.split(originals.images, 500):
        # The trigger in full precision, as when it is stamped; only the rounding is to differ.
        triggered = trigger(images.float() / 255)
        with runtime.autocast():
            answers.append(model(runtime.layout(triggered)).argmax(1))
    return torch.cat(answers)


def defense_effectiveness(before: Evaluation, after: Evaluation) -> float:
    """Return DER = (max(0, fall of ASR) - max(0, fall of ACC) + 1) / 2, in [0, 1]; 0.5: nothing achieved.

    Source: Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization" (ICCV 2023).

    Raises:
        InputError: an evaluation without ASR.
    """
    if before.asr is None or after.asr is None:
        raise InputError("DER needs the attack success rate before and after")
    return effectiveness(before.acc.value - after.acc.value, before.asr.value - after.asr.value)


def effectiveness(acc_fall: float, asr_fall: float) -> float:
    """Return DER from what ACC and ASR fell by."""
    return (max(0.0, asr_fall) - max(0.0, acc_fall) + 1) / 2


def effectiveness_interval(acc_before: Ends, acc_after: Ends, asr_before: Ends, asr_after: Ends) -> tuple[float, float]:
    """Return the ends of the 95 % interval of DER, in [0, 1], from four shares and their 95 % intervals.

    The variances are recovered from the intervals, as Newcombe takes the interval of a difference of two shares from
    their Wilson intervals: what lies between the figures and their ends adds up in squares. The four count as
    independent; they are of the same images, so the interval is rather too wide. It is of these images, not of seeds.

    Source: Newcombe, "Interval estimation for the difference between independent proportions: comparison of eleven
    methods" (Statistics in Medicine, 1998), method 10; Zou and Donner, "Construction of confidence limits about effect
    measures: a general approach" (Statistics in Medicine, 2008).
    """
    asr_fall, acc_fall = _difference(asr_before, asr_after), _difference(acc_before, acc_after)
    # A fall below 0 counts as none, and so do the ends of its interval.
    _, low, high = _difference(_no_less_than_0(asr_fall), _no_less_than_0(acc_fall))
    return max(0.0, (low + 1) / 2), min(1.0, (high + 1) / 2)


def _difference(first: Ends, second: Ends) -> Ends:
    """Return first - second."""
    below = math.hypot(first[0] - first[1], second[2] - second[0])
    above = math.hypot(first[2] - first[0], second[0] - second[1])
    value = first[0] - second[0]
    return value, value - below, value + above


def _no_less_than_0(ends: Ends) -> Ends:
    value, low, high = (max(0.0, end) for end in ends)
    return value, low, high
