"""A defender's data: what it holds, and what is missing is said."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.planted import pictures
from unbackdoor.data import DefenderData, ImageSet, balanced_rows, draw_clean, hold_out
from unbackdoor.errors import InputError


def test_a_defender_has_clean_samples_and_untrusted_data_and_nothing_else() -> None:
    assert [field.name for field in dataclasses.fields(DefenderData)] == ["clean", "untrusted"]
    assert (DefenderData().clean, DefenderData().untrusted) == (None, None)


def test_clean_samples_are_handed_out_as_they_are(tiny_images: ImageSet) -> None:
    assert DefenderData(clean=tiny_images).need_clean("X") is tiny_images


def test_missing_clean_samples_are_said_with_the_method_even_if_there_are_untrusted_ones(
    tiny_images: ImageSet,
) -> None:
    with pytest.raises(InputError, match=r"^Some Method needs clean samples; .*--clean DATA"):
        DefenderData(untrusted=tiny_images).need_clean("Some Method")


def test_clean_samples_of_one_class_are_refused(tiny_images: ImageSet) -> None:
    one = tiny_images.subset((tiny_images.labels == 2).nonzero().squeeze(1))
    with pytest.raises(InputError, match="tiny: all clean samples are of one class"):
        DefenderData(clean=one).need_clean("X")
    two = tiny_images.subset(torch.tensor([0, 1]))
    assert DefenderData(clean=two).need_clean("X") is two


def test_drawn_samples_are_balanced_without_repetition_and_fixed_by_the_seed(tiny_images: ImageSet) -> None:
    drawn = draw_clean(tiny_images, 20, 5)
    assert drawn.class_counts().tolist() == [5] * 4
    assert torch.equal(drawn.images, tiny_images.images[balanced_rows(tiny_images.labels, 20, 5)])
    assert len({image.numpy().tobytes() for image in drawn.images}) == 20
    assert drawn.digest() == draw_clean(tiny_images, 20, 5).digest()
    assert drawn.digest() != draw_clean(tiny_images, 20, 6).digest()


@pytest.mark.parametrize("size", [120, 121, 5000])
def test_all_samples_are_taken_where_there_are_not_more(tiny_images: ImageSet, size: int) -> None:
    assert draw_clean(tiny_images, size, 0).digest() == tiny_images.digest()


@pytest.mark.parametrize("size", [1, 0, -3])
def test_fewer_than_two_samples_are_refused(tiny_images: ImageSet, size: int) -> None:
    with pytest.raises(InputError, match=f"at least 2 clean samples, found a wish for {size}"):
        draw_clean(tiny_images, size, 0)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 1.0])
def test_held_out_samples_and_the_rest_are_all_samples_once(tiny_images: ImageSet, share: float) -> None:
    rest, held = hold_out(tiny_images, 3, share)
    assert len(held) == min(max(1, round(share * len(tiny_images))), len(tiny_images) - 1)
    together = torch.cat([rest.images, held.images]).flatten(1).tolist()
    assert sorted(together) == sorted(tiny_images.images.flatten(1).tolist())
    assert hold_out(tiny_images, 3, share)[1].digest() == held.digest()


def test_held_out_samples_are_of_all_classes_alike() -> None:
    counts = hold_out(pictures(80, 1), 0)[1].class_counts()
    assert counts.tolist() == [2] * 8


def test_missing_untrusted_data_are_said_with_the_method(tiny_images: ImageSet) -> None:
    assert DefenderData(untrusted=tiny_images).need_untrusted("X") is tiny_images
    with pytest.raises(InputError, match=r"^Some Method needs .* --untrusted"):
        DefenderData(clean=tiny_images).need_untrusted("Some Method")
