"""A defender's data: what it holds, and what is missing is said."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from unbackdoor.data import DefenderData, ImageSet, balanced_rows, draw_clean
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
