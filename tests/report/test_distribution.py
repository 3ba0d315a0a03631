"""A recovered distribution on a page: every trigger where it belongs, and the original only where it is given."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.scan.test_trigger_distribution import constant, distribution
from unbackdoor.report import Report, distribution_chart, distribution_gallery, render
from unbackdoor.report.distribution import mosaic

NAMES = ("a", "b", "c & d")


def test_a_mosaic_holds_each_trigger_once_with_lines_between_them() -> None:
    triggers = torch.rand(16, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    found = mosaic(triggers)
    assert found.shape == (3, 4 * 3 - 1, 4 * 6 - 1)
    for number, trigger in enumerate(triggers):
        row, column = number // 4, number % 4
        assert torch.equal(found[:, 3 * row : 3 * row + 2, 6 * column : 6 * column + 5], trigger)
    assert float(found[:, 2].min()) == float(found[:, :, 5].min()) == 1


def test_the_gallery_has_a_picture_for_each_sub_model_of_the_most_suspicious_classes() -> None:
    made = constant(0.2, 0.8)
    gallery = distribution_gallery([made, replace(made, target=0), replace(made, target=1)], NAMES)
    assert [picture.caption for picture in gallery.pictures] == [
        "triggers for c & d, beta 0.9: they led 90 % of other images there",
        "triggers for c & d, beta 0.8: they led 50 % of other images there",
        "triggers for a, beta 0.9: they led 90 % of other images there",
        "triggers for a, beta 0.8: they led 50 % of other images there",
    ]
    assert torch.allclose(gallery.pictures[1].image[:, :2, :2], torch.tensor(0.8))


def test_the_original_trigger_is_a_point_only_where_it_is_given() -> None:
    made = distribution()
    without, given = distribution_chart(made, "c"), distribution_chart(made, "c", torch.rand(made.shape))
    assert "the original trigger" not in without.svg
    assert "the original trigger" in given.svg
    assert "the original trigger" not in distribution_chart(made, "c", torch.rand(3, 4, 4)).svg
    for beta in ("0.9", "0.8", "0.5"):
        assert f"beta {beta}" in without.svg


def test_the_plane_is_that_of_the_triggers_and_the_original_does_not_turn_it() -> None:
    made = distribution()
    far = distribution_chart(made, "c", torch.full(made.shape, 1.0))
    assert distribution_chart(made, "c").explanation == far.explanation


def test_a_page_shows_both_also_of_triggers_that_are_all_alike() -> None:
    made = constant(0.2)
    page = render(
        Report(title="t", galleries=[distribution_gallery([made], NAMES)], charts=[distribution_chart(made, "c & d")])
    )
    assert "Triggers that were learned" in page
    assert "c &amp; d" in page
