"""`ImageSet` holds what it should, and its subsets, order and digest depend on content alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbackdoor.data import ImageSet, balanced_rows
from unbackdoor.errors import DataError


def test_it_says_its_size_shape_classes_and_place(tiny_images: ImageSet) -> None:
    assert len(tiny_images) == 120
    assert tiny_images.shape == (3, 16, 16)
    assert tiny_images.classes == 4
    assert tiny_images.device == torch.device("cpu")
    assert tiny_images.class_counts().tolist() == [30] * 4


def test_classes_without_images_count_as_classes(tiny_images: ImageSet) -> None:
    wider = replace(tiny_images, class_names=(*tiny_images.class_names, "e"))
    assert wider.classes == 5
    assert wider.class_counts().tolist() == [30, 30, 30, 30, 0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": torch.zeros(120, 3, 16, 16)}, "images must be uint8.*float32"),
        ({"images": torch.zeros(120, 16, 16, dtype=torch.uint8)}, r"found torch.uint8 \(120, 16, 16\)"),
        ({"labels": torch.zeros(119, dtype=torch.int64)}, "120 images need as many int64 labels"),
        ({"labels": torch.zeros(120, dtype=torch.int32)}, "int32"),
        ({"labels": torch.zeros(120, 1, dtype=torch.int64)}, r"\(120, 1\)"),
        ({"labels": torch.full((120,), 4)}, "labels run from 4 to 4, but there are 4 classes"),
        ({"labels": torch.full((120,), -1)}, "labels run from -1"),
        ({"class_names": ()}, "there are 0 classes"),
        (
            {"images": torch.zeros(0, 3, 16, 16, dtype=torch.uint8), "labels": torch.zeros(0, dtype=torch.int64)},
            "holds no images",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_name_of_the_data(
    tiny_images: ImageSet, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=f"^tiny: .*{words}"):
        replace(tiny_images, **changes)


def test_it_cannot_be_changed(tiny_images: ImageSet) -> None:
    with pytest.raises(FrozenInstanceError):
        tiny_images.name = "other"  # type: ignore[misc]


def test_a_subset_holds_the_rows_in_the_order_asked_for(tiny_images: ImageSet) -> None:
    rows = torch.tensor([7, 3, 3, 119])
    part = tiny_images.subset(rows)
    assert torch.equal(part.images, tiny_images.images[rows])
    assert part.labels.tolist() == [3, 3, 3, 3]
    assert part.class_names == tiny_images.class_names
    assert part.name == "tiny"
    with pytest.raises(DataError, match="no images"):
        tiny_images.subset(torch.tensor([], dtype=torch.int64))


def test_moving_to_the_same_place_copies_nothing(tiny_images: ImageSet) -> None:
    moved = tiny_images.to("cpu")
    assert moved.images.data_ptr() == tiny_images.images.data_ptr()
    assert moved.labels.data_ptr() == tiny_images.labels.data_ptr()


@settings(deadline=None)
@given(st.permutations(range(12)))
def test_canonical_order_does_not_depend_on_the_order_given(order: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 2, (12, 1, 2, 2), generator=generator, dtype=torch.uint8)
    images[3] = images[5]  # the same picture with two labels, and below one row twice
    images[8], whole = images[0], torch.arange(12) % 4
    given = ImageSet(images=images, labels=whole, class_names=tuple("abcd"))
    shuffled = given.subset(torch.tensor(order))
    one, other = given.in_canonical_order(), shuffled.in_canonical_order()
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)


def test_canonical_order_keeps_each_image_with_its_label(tiny_images: ImageSet) -> None:
    def rows(data: ImageSet) -> Counter[tuple[bytes, int]]:
        return Counter((image.numpy().tobytes(), int(label)) for image, label in zip(data.images, data.labels))

    ordered = tiny_images.in_canonical_order()
    assert rows(ordered) == rows(tiny_images)
    assert not torch.equal(ordered.images, tiny_images.images)


def test_order_and_digest_do_not_depend_on_the_memory_layout(tiny_images: ImageSet) -> None:
    last = replace(tiny_images, images=tiny_images.images.contiguous(memory_format=torch.channels_last))
    assert last.digest() == tiny_images.digest()
    assert torch.equal(last.in_canonical_order().images, tiny_images.in_canonical_order().images)


def test_digest_changes_with_pixels_labels_order_classes_and_shape_but_not_with_the_name(tiny_images: ImageSet) -> None:
    pixels, labels = tiny_images.images.clone(), tiny_images.labels.clone()
    pixels[-1, -1, -1, -1] ^= 1
    labels[-1] = 0
    others = [
        replace(tiny_images, images=pixels),
        replace(tiny_images, labels=labels),
        tiny_images.subset(torch.arange(119, -1, -1)),
        replace(tiny_images, class_names=("a", "b", "c", "e")),
        replace(tiny_images, class_names=("a", "b", "c", "d", "e")),
        replace(tiny_images, images=tiny_images.images.view(120, 3, 8, 32)),
    ]
    digests = {data.digest() for data in (tiny_images, *others)}
    assert len(digests) == 7
    assert all(len(digest) == 64 for digest in digests)
    assert replace(tiny_images, name="other").digest() == tiny_images.digest()


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any),
    size=st.integers(0, 60),
    seed=st.integers(0, 5),
)
def test_balanced_rows_are_as_equal_as_the_classes_allow(counts: list[int], size: int, seed: int) -> None:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(9))]
    rows = balanced_rows(labels, size, seed)
    assert len(rows) == min(size, len(labels))
    assert bool((rows.diff() > 0).all()), "ascending, without repetition"
    drawn = torch.bincount(labels[rows], minlength=len(counts)).tolist()
    # A class may have two images fewer than another only if it has no more to give.
    most = max(drawn, default=0)
    assert all(found >= most - 1 or found == available for found, available in zip(drawn, counts))


def test_balanced_rows_are_decided_by_the_seed_alone() -> None:
    labels = torch.arange(100) % 5
    expected = balanced_rows(labels, 20, 3)
    torch.manual_seed(77)
    assert torch.equal(balanced_rows(labels, 20, 3), expected)
    assert not torch.equal(balanced_rows(labels, 20, 4), expected)


def test_every_row_of_a_class_is_drawn_as_often_as_the_others() -> None:
    """600 draws of 2 of each class of 10: 120 expected for each row; chi-squared, 38 degrees, 0.1 %."""
    labels = torch.arange(40) % 4
    counts = torch.zeros(40)
    for seed in range(600):
        counts[balanced_rows(labels, 8, seed)] += 1
    assert float(((counts - 120) ** 2 / 120).sum()) < 70.7


def test_classes_that_get_one_more_are_drawn_too() -> None:
    labels = torch.arange(40) % 4
    extra = Counter(int(labels[balanced_rows(labels, 1, seed)]) for seed in range(200))
    assert min(extra[label] for label in range(4)) > 25
