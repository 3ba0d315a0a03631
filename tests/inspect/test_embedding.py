"""Neighbours in the features, and their layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from tests.inspect.known import linear, material, random_images
from tests.planted import planted, runtime
from unbackdoor.errors import InputError, UnsuitedError
from unbackdoor.inspect import Embedding, Figure
from unbackdoor.inspect.embedding import nearest, tsne

QUICK = Embedding(points=120, perplexity=10, neighbors=4)


def groups(count: int = 3, size: int = 20, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    centres = 20 * torch.eye(count, width)
    return torch.cat([centre + torch.randn(size, width, generator=generator) for centre in centres])


def test_the_nearest_are_scikit_learn_s() -> None:
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
    _, found = NearestNeighbors(n_neighbors=5).fit(rows.numpy()).kneighbors()
    assert nearest(rows, 5).tolist() == found.tolist()
    assert nearest(rows[:3], 10).shape == (3, 2), "no row is its own neighbour"


def test_groups_stay_groups_in_the_plane() -> None:
    places = tsne(groups(), 10, seed=0)
    assert places.shape == (60, 2)
    near = nearest(places, 5)
    assert torch.equal(near // 20, (torch.arange(60) // 20)[:, None].expand(60, 5))


def test_the_layout_depends_on_the_seed_alone_and_takes_what_is_few_or_narrow() -> None:
    one, other = (tsne(groups(), 10, seed=2**40 + 3) for _ in range(2))
    assert torch.equal(one, other)
    assert bool(tsne(torch.tensor([[0.0], [1.0], [2.0], [5.0]]), 30, seed=0).isfinite().all())


def test_the_same_features_everywhere_cannot_be_laid_out() -> None:
    with pytest.raises(UnsuitedError, match="the same features"):
        tsne(torch.ones(10, 3), 5, seed=0)


def test_triggered_images_have_triggered_neighbours_in_the_suspect_and_their_class_in_its_twin() -> None:
    found = QUICK.inspect(planted(1).suspect, material(), runtime())
    suspect, twin = (list(found.measured[name].values()) for name in ("suspect", "reference"))
    of_clean, together, at_target, at_home = suspect
    assert of_clean > 0.8
    assert together > 0.8
    assert together + at_target + at_home <= 1 + 1e-6
    assert twin[3] > at_home + 0.2
    assert f"{100 * together:.0f} % are triggered" in found.headline


def test_shares_of_neighbours_against_a_count_by_hand() -> None:
    # On a line: two clean images of class 0, two of class 1, and two triggered ones of class 0 that want class 1.
    features = torch.tensor([[0.0], [1.0], [10.0], [11.0], [12.5], [13.0]])
    labels = torch.tensor([0, 0, 1, 1, 0, 0])
    woken = torch.arange(6) >= 4
    one = Embedding(neighbors=1)._neighbours(features, labels, woken, torch.tensor([1, 1]))
    assert list(one.values()) == [1.0, 1.0, 0.0, 0.0]
    two = Embedding(neighbors=2)._neighbours(features, labels, woken, torch.tensor([1, 1]))
    # Clean, among clean ones: one of each class; triggered: a triggered one and one of class 1.
    assert list(two.values()) == [0.5, 0.5, 0.5, 0.0]


def test_a_triggered_neighbour_is_none_of_the_attacker_s_class() -> None:
    features, labels = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 1, 1, 0])
    woken = torch.tensor([False, False, True, True])
    found = Embedding(neighbors=1)._neighbours(features, labels, woken, torch.tensor([0, 1]))
    assert list(found.values())[1:] == [1.0, 0.0, 0.0]


def test_every_image_is_a_point_of_its_class_and_triggered_ones_are_a_series_of_their_own() -> None:
    figure = QUICK.inspect(planted(1).suspect, material(reference=None), runtime()).figures[0]
    assert isinstance(figure, Figure)
    assert figure.stands_out == "triggered"
    assert list(figure.series) == [*(f"{number} {name}" for number, name in enumerate("abcdefgh")), "triggered"]
    assert len(figure.series["triggered"][0]) == 60
    assert sum(len(x) for x, _ in figure.series.values()) == 120


def test_too_many_classes_share_a_colour() -> None:
    images = random_images((1, 4, 4), 60, 20)
    suspect = linear(torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(4)))
    figure = QUICK.inspect(suspect, material(clean=images, attack=None, reference=None), runtime()).figures[0]
    assert isinstance(figure, Figure)
    assert list(figure.series) == ["clean"]
    assert "too many classes" in figure.explanation


def test_too_few_images_are_refused() -> None:
    images = random_images((1, 4, 4), 3, 2)
    with pytest.raises(InputError, match="3 images are too few"):
        QUICK.inspect(linear(torch.rand(2, 1, 4, 4)), material(clean=images, attack=None, reference=None), runtime())


@pytest.mark.parametrize("options", [{"points": 9}, {"perplexity": 0.5}, {"neighbors": 0}])
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^Embedding: .* found "):
        Embedding(**options)
