"""What inspections compare."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.inspect.known import Known, described, linear, material, random_images
from tests.planted import planted, runtime
from unbackdoor.attacks import AllToAll, AllToOne
from unbackdoor.errors import InputError, UnsuitedError
from unbackdoor.inspect.compared import (
    AT_ONCE,
    batches,
    drawn,
    features_of,
    models_of,
    pairs_of,
    samples_of,
    side_by_side,
    triggered,
)
from unbackdoor.training import logits_of


def test_pairs_are_the_counted_images_without_and_with_the_trigger() -> None:
    models = planted(1)
    clean = material().clean
    pairs = pairs_of(clean, models.fitted)
    kept = clean.labels != models.target
    assert torch.equal(pairs.originals.images, clean.images[kept])
    assert torch.equal(pairs.triggered.images, models.fitted.trigger.stamp(clean.images[kept]))
    assert torch.equal(pairs.originals.labels, clean.labels[kept])
    assert torch.equal(pairs.triggered.labels, clean.labels[kept]), "true labels, not the attacker's"
    assert set(pairs.wanted.tolist()) == {models.target}


def test_triggered_images_have_the_labels_that_the_attacker_wants() -> None:
    clean, attack = material().clean, Known(planted(1).fitted.trigger, AllToAll(classes=8))
    assert torch.equal(triggered(clean, attack).labels, (clean.labels + 1) % 8)
    found = samples_of(material())
    assert list(found) == ["clean", "triggered"]
    assert set(found["triggered"].labels.tolist()) == {planted(1).target}
    assert list(samples_of(material(attack=None))) == ["clean"]


def test_an_attack_on_no_image_is_refused() -> None:
    clean = material().clean
    alone = clean.subset((clean.labels == 2).nonzero().squeeze(1))
    with pytest.raises(InputError, match="no trigger can be seen at work"):
        pairs_of(alone, Known(planted(1).fitted.trigger, AllToOne(target=2)))


def test_what_is_drawn_depends_on_seed_and_purpose_alone() -> None:
    rows = drawn(100, 10, runtime(), "a")
    assert torch.equal(rows, drawn(100, 10, runtime(), "a"))
    assert not torch.equal(rows, drawn(100, 10, runtime(), "b"))
    assert not torch.equal(rows, drawn(100, 10, runtime(1), "a"))
    assert len(set(rows.tolist())) == 10
    assert rows.tolist() == sorted(rows.tolist())
    assert drawn(5, 10, runtime(), "a").tolist() == [0, 1, 2, 3, 4]


def test_large_images_come_in_smaller_parts_and_none_is_lost() -> None:
    small = random_images((3, 12, 12), 2000, 8).images
    assert torch.equal(torch.cat(batches(small)), small)
    assert [len(part) for part in batches(small)] == [1422, 578]
    assert [len(part) for part in batches(torch.zeros(3, 1, 1, AT_ONCE + 1, dtype=torch.uint8))] == [1, 1, 1]


def test_features_are_what_the_last_linear_layer_reads() -> None:
    images = random_images((3, 12, 12), 700, 8)
    suspect = planted(1).suspect
    features, logits = features_of(suspect, images, runtime())
    assert torch.equal(logits, logits_of(suspect, images.images, runtime()))
    head = suspect.body[-1]
    assert isinstance(head, nn.Linear)
    torch.testing.assert_close(head(features), logits)


def test_a_network_without_a_linear_layer_has_no_features() -> None:
    body = nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten())
    with pytest.raises(UnsuitedError, match="this network has none"):
        features_of(described(body, (1, 4, 4), 3), random_images((1, 4, 4), 5, 3), runtime())


def test_the_reference_must_take_the_images_too() -> None:
    suspect = linear(torch.rand(3, 1, 4, 4))
    other = described(nn.Sequential(nn.Flatten(), nn.Linear(99, 3)), (1, 4, 4), 3)
    given = material(clean=random_images((1, 4, 4), 5, 3), attack=None, reference=other)
    with pytest.raises(InputError, match="cannot take"):
        models_of(suspect, given, runtime())
    assert list(models_of(suspect, material(clean=given.clean, attack=None, reference=None), runtime())) == ["suspect"]


def test_a_figure_of_one_model_needs_no_name() -> None:
    assert side_by_side({"suspect": 1.25}, "{:.1f}".format) == "1.2"
    assert side_by_side({"suspect": 1.25, "reference": 2.0}, "{:.1f}".format) == "suspect 1.2 · reference 2.0"
