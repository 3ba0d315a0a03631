"""Confidence: how sure a model is of its answers, to clean images and to triggered ones.

The confidence of an answer is its softmax probability. An attack trains a model to answer one simple pattern with one
class, so its answers to triggered images tend to be as sure as those to clean ones, or surer; STRIP (Gao and others,
ACSAC 2019) and SCALE-UP (Guo and others, ICLR 2023) are built on that they stay so when the image is disturbed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.inspect.base import Figure, Insight, Inspection, Material
from unbackdoor.inspect.compared import CLEAN, SUSPECT, TRIGGERED, models_of, samples_of, side_by_side
from unbackdoor.models import Network
from unbackdoor.training import Runtime, logits_of


@dataclass(frozen=True, kw_only=True)
class Confidence(Inspection):
    """Histograms of the confidence of a model's answers, to clean and to triggered images.

    Attributes:
        bins: of the histograms, from 0 to 1; 1 or more.
    """

    title: ClassVar[str] = "Confidence of the answers"

    bins: int = 25

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise InputError(f"Confidence: a histogram has 1 bin or more, found {self.bins}")

    def look(self, model: Network, material: Material, runtime: Runtime, resume: Path | None) -> Insight:
        """Answer all images, and count (see `Inspection.inspect`)."""
        samples = samples_of(material)
        seen = {
            name: {kind: self._measured(one, images, runtime) for kind, images in samples.items()}
            for name, one in models_of(model, material, runtime).items()
        }
        told = [f"{kind} images {one['mean']:.2f}" for kind, one in seen[SUSPECT].items()]
        return Insight(
            headline=f"The mean confidence of the suspect's answers: {', '.join(told)}.",
            suspicious="Answers to triggered images that are as sure as those to clean ones, or surer. Once a repair"
            " has worked, few triggered images get the attacker's class; those that still do are answered unsurely.",
            rows=_rows(seen),
            figures=[self._figure(name, one) for name, one in seen.items()],
            measured=seen,
        )

    def _measured(self, model: Network, images: ImageSet, runtime: Runtime) -> dict[str, Any]:
        """Return the figures of one model on some images, as JSON values."""
        sure, answers = logits_of(model, images.images, runtime).softmax(1).max(1)
        return {
            "images": len(images),
            "mean": float(sure.mean()),
            "median": float(sure.median()),
            "as_labelled": float((answers.cpu() == images.labels.cpu()).float().mean()),
            "histogram": shares_by_bin(sure.cpu(), self.bins).tolist(),
        }

    def _figure(self, name: str, seen: Mapping[str, Mapping[str, Any]]) -> Figure:
        edges = [number / self.bins for number in range(self.bins + 1)]
        return Figure(
            title=f"Confidence of the answers: {name}",
            explanation="How many images are answered with which confidence. The scale is stretched at the bottom, so"
            " that few images can be seen beside many.",
            marks="steps",
            series={kind: (edges, [*one["histogram"], one["histogram"][-1]]) for kind, one in seen.items()},
            x_title="confidence of the answer",
            y_title="share of the images",
            distinct=True,
            stands_out=TRIGGERED,
        )


def shares_by_bin(values: Float[Tensor, "n"], bins: int) -> Float[Tensor, "bins"]:
    """Return which share of values from 0 to 1 lies in each of so many bins of the same width; 1 is in the last."""
    # Softmax may round to a hair more than 1.
    return torch.histc(values.float().clamp(0, 1), bins, 0, 1) / len(values)


def _rows(seen: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, str]]:
    rows = []
    for kind in seen[SUSPECT]:
        of_kind = {name: kinds[kind] for name, kinds in seen.items()}
        whose = "their own class" if kind == CLEAN else "the attacker's class"
        rows += [
            (f"{kind}: mean confidence", side_by_side(of_kind, lambda one: f"{one['mean']:.3f}")),
            (f"{kind}: median confidence", side_by_side(of_kind, lambda one: f"{one['median']:.3f}")),
            (f"{kind}: get {whose}", side_by_side(of_kind, lambda one: f"{100 * one['as_labelled']:.1f} %")),
        ]
    return rows
