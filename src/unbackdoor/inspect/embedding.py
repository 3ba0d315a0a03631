"""Embedding: the features of images, laid out in a plane so that neighbours stay neighbours.

Features are what the last linear layer reads. They are laid out by t-SNE (van der Maaten and Hinton, JMLR 2008) as
scikit-learn has it, after a projection to at most 50 principal components as its authors advise. UMAP shows much the
same, but would bring numba and LLVM, which weigh more than all else that inspections need, and is compiled at its first
use; t-SNE is here already, and for the thousand points that can be told apart on a page its speed does not matter.

A picture of t-SNE may mislead: distances between groups and their sizes mean nothing. So neighbours are counted in the
features themselves, before the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unbackdoor.errors import InputError, UnsuitedError
from unbackdoor.inspect.base import Figure, Insight, Inspection, Material
from unbackdoor.inspect.compared import SUSPECT, TRIGGERED, drawn, features_of, models_of, pairs_of, side_by_side
from unbackdoor.models import Network
from unbackdoor.training import Runtime

COMPONENTS = 50
"""Principal components that t-SNE gets."""
MOST_CLASSES = 12
"""That get a colour of their own; more cannot be told apart."""


@dataclass(frozen=True, kw_only=True)
class Embedding(Inspection):
    """The features of clean and triggered images in a plane, by t-SNE, and who their neighbours are.

    Attributes:
        points: images laid out at most, half of them triggered if the attack is known; 10 or more.
        perplexity: of t-SNE, roughly the neighbours that a point has; at most a third of the points is used. 1 or more.
        neighbors: nearest ones that are counted for each image, 1 or more.
    """

    title: ClassVar[str] = "Feature embedding (t-SNE)"

    points: int = 1000
    perplexity: float = 30.0
    neighbors: int = 10

    def __post_init__(self) -> None:
        if self.points < 10 or not self.perplexity >= 1 or self.neighbors < 1:
            raise InputError(
                "Embedding: it takes 10 points or more, a perplexity of 1 or more and 1 neighbour or more, found"
                f" {self.points}, {self.perplexity} and {self.neighbors}"
            )

    def look(self, model: Network, material: Material, runtime: Runtime, resume: Path | None) -> Insight:
        """Lay out and count neighbours (see `Inspection.inspect`)."""
        clean, wanted = material.clean, None
        rows = drawn(len(clean), self.points // (1 if material.attack is None else 2), runtime, "clean")
        samples = [clean.subset(rows)]
        if material.attack is not None:
            pairs = pairs_of(clean, material.attack)
            rows = drawn(len(pairs.wanted), self.points // 2, runtime, "triggered")
            wanted = pairs.wanted.cpu()[rows]
            samples.append(pairs.triggered.subset(rows))
        count = sum(map(len, samples))
        if count < 4:
            raise InputError(f"Embedding: {count} images are too few to have neighbours; give more with --clean")
        labels = torch.cat([images.labels.cpu() for images in samples])
        is_triggered = torch.arange(count) >= len(samples[0])
        measured: dict[str, dict[str, float]] = {}
        figures = []
        for name, one in models_of(model, material, runtime).items():
            features = torch.cat([features_of(one, images, runtime)[0] for images in samples])
            measured[name] = self._neighbours(features, labels, is_triggered, wanted)
            places = tsne(features, self.perplexity, runtime.seed)
            figures.append(_figure(name, clean.class_names, places, labels, is_triggered))
        return Insight(
            headline=_headline(measured[SUSPECT]),
            suspicious="Triggered images in a group of their own, apart from the classes that they come from, often"
            " beside the attacker's class. Without a backdoor they stay with their own classes.",
            rows=_rows(measured),
            figures=figures,
            measured=measured,
        )

    def _neighbours(
        self,
        features: Float[Tensor, "n d"],
        labels: Int[Tensor, "n"],
        is_triggered: Tensor,
        wanted: Int[Tensor, "m"] | None,
    ) -> dict[str, float]:
        """Return what the nearest neighbours of the images are, as shares."""
        clean = labels[~is_triggered]
        among_clean = clean[nearest(features[~is_triggered], self.neighbors)]
        shares = {
            "neighbours of clean images, among such, that are of their class": _mean(among_clean == clean[:, None])
        }
        if wanted is not None:
            near = nearest(features, self.neighbors)[is_triggered]
            woken, own = is_triggered[near], labels[near] == labels[is_triggered][:, None]
            goal = labels[near] == wanted[:, None]
            shares |= {
                "neighbours of triggered images that are triggered": _mean(woken),
                "neighbours of triggered images that are clean and of the attacker's class": _mean(goal & ~woken),
                "neighbours of triggered images that are clean and of their true class": _mean(own & ~woken),
            }
        return shares


def nearest(features: Float[Tensor, "n d"], count: int) -> Int[Tensor, "n k"]:
    """Return the nearest others of each row, by Euclid's distance; all others if there are not more than `count`."""
    distances = torch.cdist(features.double(), features.double())
    distances.fill_diagonal_(torch.inf)
    return distances.topk(min(count, len(features) - 1), largest=False).indices


def tsne(features: Float[Tensor, "n d"], perplexity: float, seed: int) -> Float[Tensor, "n 2"]:
    """Return a place in the plane for each row.

    Args:
        features: of 4 rows or more.
        perplexity: at most a third of the rows is used.
        seed: of the layout.

    Raises:
        UnsuitedError: all rows are the same.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = features.double().numpy()
    if not rows.std(0).max() > 0:
        raise UnsuitedError("all images have the same features in this network, so there is nothing to lay out")
    # scikit-learn takes a seed of 32 bits.
    state = seed % 2**32
    components = PCA(min(COMPONENTS, *rows.shape), random_state=state).fit_transform(rows)
    start = "pca" if components.shape[1] > 1 else "random"
    layout = TSNE(perplexity=min(perplexity, (len(rows) - 1) / 3), init=start, random_state=state)
    return torch.from_numpy(layout.fit_transform(components))


def _rows(measured: dict[str, dict[str, float]]) -> list[tuple[str, str]]:
    return [
        (what, side_by_side({name: one[what] for name, one in measured.items()}, lambda share: f"{100 * share:.1f} %"))
        for what in measured[SUSPECT]
    ]


def _mean(these: Tensor) -> float:
    return float(these.float().mean())


def _headline(shares: dict[str, float]) -> str:
    of_clean, *of_triggered = (100 * share for share in shares.values())
    told = f"{of_clean:.0f} % of the neighbours of clean images are of their class"
    if of_triggered:
        told += (
            f"; of those of triggered images, {of_triggered[0]:.0f} % are triggered, {of_triggered[1]:.0f} % are of the"
            f" attacker's class and {of_triggered[2]:.0f} % of their true class"
        )
    return f"In the suspect's features, {told}."


def _figure(
    name: str, names: tuple[str, ...], places: Float[Tensor, "n 2"], labels: Int[Tensor, "n"], is_triggered: Tensor
) -> Figure:
    many = len(names) > MOST_CLASSES
    chosen = (
        {"clean": ~is_triggered}
        if many
        else {f"{number} {label}": (labels == number) & ~is_triggered for number, label in enumerate(names)}
    )
    chosen = {title: rows for title, rows in chosen.items() if bool(rows.any())}
    if bool(is_triggered.any()):
        # Last, so that they lie on top.
        chosen[TRIGGERED] = is_triggered
    return Figure(
        title=f"Features of the images: {name}",
        explanation="A point is an image; images with similar features lie together. Distances between groups, and"
        " directions, mean nothing." + (" There are too many classes for a colour each." if many else ""),
        marks="points",
        series={title: (places[rows, 0].tolist(), places[rows, 1].tolist()) for title, rows in chosen.items()},
        x_title="first direction of t-SNE",
        y_title="second direction of t-SNE",
        distinct=True,
        stands_out=TRIGGERED,
    )
