from __future__ import annotations

import torch

from unbackdoor.data import ImageSet
from unbackdoor.data.divide import part_rows


def uneven(counts: tuple[int, ...]) -> ImageSet:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(labels), 3, 4, 5), generator=generator, dtype=torch.uint8)
    return ImageSet(images=images, labels=labels, class_names=tuple("abcdef"[: len(counts)]))


def test_the_parts_are_four_fifths_and_one_fifth_of_each_class_and_complete() -> None:
    images = uneven((50, 100, 5))
    train, test = part_rows(images, "train"), part_rows(images, "test")
    assert images.subset(test).class_counts().tolist() == [10, 20, 1]
    assert images.subset(train).class_counts().tolist() == [40, 80, 4]
    assert sorted(train.tolist() + test.tolist()) == list(range(155))
    assert train.tolist() == sorted(train.tolist())


def test_small_classes_stand_on_both_sides_if_they_can() -> None:
    images = uneven((1, 2, 3))
    assert images.subset(part_rows(images, "test")).class_counts().tolist() == [0, 1, 1]
    assert images.subset(part_rows(images, "train")).class_counts().tolist() == [1, 1, 2]


def test_a_permutation_of_the_rows_gives_the_same_members() -> None:
    images = uneven((30, 40))
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    shuffled = images.subset(order)
    for part in ("train", "test"):
        assert sorted(order[part_rows(shuffled, part)].tolist()) == part_rows(images, part).tolist()


def test_the_division_is_no_mere_prefix_and_looks_at_the_pixels() -> None:
    images = uneven((50, 50))
    test = part_rows(images, "test")
    assert test.tolist() != list(range(10)) + list(range(50, 60))
    changed = ImageSet(images=images.images ^ 1, labels=images.labels, class_names=images.class_names)
    assert part_rows(changed, "test").tolist() != test.tolist()


def test_memory_format_does_not_matter() -> None:
    images = uneven((30, 40))
    last = ImageSet(
        images=images.images.contiguous(memory_format=torch.channels_last),
        labels=images.labels,
        class_names=images.class_names,
    )
    assert torch.equal(part_rows(last, "test"), part_rows(images, "test"))
