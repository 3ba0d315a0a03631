"""Confusion: which classes a model takes for which, on clean images and on triggered ones.

The counts are torchmetrics'. A class that draws many images of all other classes, on clean images already, is the
first thing to look at in an unknown model; on triggered images, an all-to-one attack is one dark column, and an
all-to-all attack a dark line beside the diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from unbackdoor.data import ImageSet
from unbackdoor.inspect.base import Insight, Inspection, Material, Matrix
from unbackdoor.inspect.compared import CLEAN, SUSPECT, TRIGGERED, models_of, pairs_of, side_by_side
from unbackdoor.models import Network
from unbackdoor.training import Runtime, logits_of


@dataclass(frozen=True, kw_only=True)
class Confusion(Inspection):
    """Which classes a model answers for images of which, as a matrix."""

    title: ClassVar[str] = "Confusion matrix"

    def look(self, model: Network, material: Material, runtime: Runtime, resume: Path | None) -> Insight:
        """Answer all images, and count (see `Inspection.inspect`)."""
        samples = {CLEAN: material.clean}
        if material.attack is not None:
            samples[TRIGGERED] = pairs_of(material.clean, material.attack).triggered
        names = material.clean.class_names
        measured: dict[str, dict[str, Any]] = {}
        matrices = []
        for name, one in models_of(model, material, runtime).items():
            measured[name] = {}
            for kind, images in samples.items():
                counts = confusion_counts(one, images, runtime)
                right = float(counts.diagonal().sum()) / len(images)
                measured[name][kind] = {"right": right, "counts": counts.tolist(), "attraction": attraction(counts)}
                matrices.append(_matrix(name, kind, names, counts))
        told = [f"of the {kind} images of other classes {_most(names, one)}" for kind, one in measured[SUSPECT].items()]
        return Insight(
            headline=f"The suspect: {', '.join(told)}; no class gets more.",
            suspicious="A dark column: one class gets images of all others. On clean images its shade is faint at most,"
            " and similar classes (cat and dog) are confused in any model; on triggered ones the column is dark.",
            rows=_rows(names, measured),
            figures=matrices,
            measured=measured,
        )


def confusion_counts(model: Network, images: ImageSet, runtime: Runtime) -> Int[Tensor, "k k"]:
    """Return how many images of each class (row) get each answer (column)."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    answers = logits_of(model, images.images, runtime).argmax(1).cpu()
    counts: Tensor = multiclass_confusion_matrix(answers, images.labels.cpu(), num_classes=images.classes)
    return counts


def attraction(counts: Int[Tensor, "k k"]) -> list[float]:
    """Return, of each class, which share of the images of all other classes get it; 0 if there are none."""
    wrong = counts.sum(0) - counts.diagonal()
    others = counts.sum() - counts.sum(1)
    shares: list[float] = (wrong / others.clamp_min(1)).tolist()
    return shares


def _most(names: tuple[str, ...], seen: dict[str, Any]) -> str:
    """Return which class draws most from the others."""
    share, number = max((share, -number) for number, share in enumerate(seen["attraction"]))
    return f"{100 * share:.1f} % get {names[-number]}"


def _rows(names: tuple[str, ...], measured: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    rows = []
    for kind in measured[SUSPECT]:
        of_kind = {name: kinds[kind] for name, kinds in measured.items()}
        rows += [
            (f"{kind}: get their true class", side_by_side(of_kind, lambda one: f"{100 * one['right']:.1f} %")),
            (f"{kind}: of other classes' images", side_by_side(of_kind, lambda one: _most(names, one))),
        ]
    return rows


def _matrix(name: str, kind: str, names: tuple[str, ...], counts: Int[Tensor, "k k"]) -> Matrix:
    return Matrix(
        title=f"Confusion matrix of {kind} images: {name}",
        explanation="A row is a class, a column an answer; the darker, the more of the row's images get it. Each row"
        " with images adds up to 100 %.",
        names=names,
        shares=(counts / counts.sum(1, keepdim=True).clamp_min(1)).tolist(),
        x_title="answer, by number of the class",
        y_title="true class",
    )
