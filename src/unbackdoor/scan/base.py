"""`Scanner`: is this model backdoored? `Finding`: its answer."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.scan.trigger_distribution import TriggerDistribution
from unbackdoor.training import Runtime, check_fits, logits_of

PROBED = 64
"""Clean images for which a model is asked whether its outputs are numbers, before it is scanned."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """A trigger found by a scanner.

    Attributes:
        target: class that it leads to.
        mask: opacity of each pixel, shape (1, H, W), 0 to 1.
        pattern: shape (C, H, W), 0 to 1.
        success: share of the images that it led there in the search, those of the class itself among them, 0 to 1.
    """

    target: int
    mask: Float[Tensor, "1 h w"]
    pattern: Float[Tensor, "c h w"]
    success: float

    @property
    def size(self) -> float:
        """Sum of the mask: how many pixels the trigger covers, partly covered ones counted partly."""
        return float(self.mask.sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """What a scanner says of a model.

    Attributes:
        backdoored: the verdict; None: inconclusive.
        suspected: classes that a trigger seems to lead to, most suspicious first.
        calibrated: whether the verdict's false-alarm rate is known; if not, treat it as a hint.
        anomaly: how unusual each class is, shape (classes,); larger is more suspicious.
        threshold: on `anomaly`.
        reconstructions: one trigger a class, in the order of the classes; empty if the scanner makes none.
        distributions: of triggers, for the classes that were looked at most closely, most suspicious first; empty if
            the scanner learns none.
        reason: one sentence.
        numbers: of each class, in the scanner's own units, shape (numbers, classes); larger is more suspicious, and
            `Verdict` compares them with those of clean models. They are `anomaly` alone if none are given.
        shortened: whether a budget cut the search short, so that the numbers are not those of the full one.
        seconds: how long each scanner took that was asked; not in `to_json`, since equal scans differ in it.
        evidence: further numbers, JSON values.
    """

    backdoored: bool | None
    suspected: tuple[int, ...]
    calibrated: bool
    anomaly: Float[Tensor, "classes"]
    threshold: float
    reconstructions: tuple[Reconstruction, ...] = ()
    distributions: tuple[TriggerDistribution, ...] = ()
    reason: str = ""
    numbers: Float[Tensor, "numbers classes"] = None  # type: ignore[assignment]  # set below
    shortened: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.numbers is None:
            object.__setattr__(self, "numbers", self.anomaly[None])

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON values, without pictures."""
        return {
            "backdoored": self.backdoored,
            "suspected": list(self.suspected),
            "calibrated": self.calibrated,
            "anomaly": [round(float(value), 4) for value in self.anomaly],
            "threshold": self.threshold,
            "reason": self.reason,
            "shortened": self.shortened,
            "triggers": [
                {"target": found.target, "size": round(found.size, 3), "success": round(found.success, 4)}
                for found in self.reconstructions
            ],
            **self.evidence,
        }


@dataclass(frozen=True, kw_only=True)
class Scanner(ABC):
    """Base of all scanners: its fields are its options, nothing else is stored."""

    revision: ClassVar[int] = 0
    """Raised when the same options give other results than before: the bench then does not take old cells for done."""

    def scan(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        """Return a verdict on the model, which is not changed.

        The clean samples are put into an order that depends on their content alone, so the order in which they come
        cannot change anything.

        Args:
            model: images in [0, 1] to logits.
            data: what the defender has.
            runtime: device, seed, budget.

        Raises:
            InputError: data that the scanner needs are missing or do not fit the model, or its outputs are no numbers.
        """
        check_fits(model, data.clean, data.untrusted)
        copied = runtime.settle(copy.deepcopy(model)).eval().requires_grad_(False)
        clean = None if data.clean is None else data.clean.in_canonical_order()
        if clean is not None and not bool(logits_of(copied, clean.images[:PROBED], runtime).isfinite().all()):
            raise InputError(
                "the model's outputs for clean images are NaN or infinite, so nothing can be said about it"
            )
        finding = self.inspect(copied, replace(data, clean=clean), runtime)
        if bool(finding.anomaly.isnan().any()):
            reason = "numbers of the scan are NaN, so nothing can be said about the model"
            return replace(finding, backdoored=None, suspected=(), reason=reason)
        return finding

    @abstractmethod
    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        """Do the work of `scan` on a frozen copy of the model, in evaluation mode."""


def clean_to_compare(data: DefenderData, method: str) -> ImageSet:
    """Return the clean samples, for a scanner that compares classes with each other.

    Args:
        data: what the defender has.
        method: the scanner, for messages.

    Raises:
        InputError: there are none, or they have fewer than three classes.
    """
    clean = data.need_clean(method)
    if clean.classes < 3:
        raise InputError(
            f"{clean.name}: {method} compares classes with each other and needs at least 3, found {clean.classes}"
        )
    return clean
