from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from unbackdoor.data import read_images


def test_digits_are_grey_32_by_32_with_all_ten_classes_in_both_parts() -> None:
    train, test, everything = (read_images("digits", split) for split in ("train", "test", "any"))
    assert (len(train), len(test), len(everything)) == (1438, 359, 1797)
    assert train.shape == test.shape == everything.shape == (1, 32, 32)
    assert train.class_names == tuple("0123456789")
    assert (test.class_counts() - everything.class_counts() / 5).abs().max() < 1
    assert (train.name, test.name) == ("digits/train", "digits/test")
    assert train.images.is_contiguous(memory_format=torch.channels_last)


def test_digits_have_the_published_labels_and_their_pixels_enlarged() -> None:
    everything = read_images("digits", "any")
    small, labels = load_digits(return_X_y=True)
    assert np.array_equal(everything.labels.numpy(), labels)
    # Pillow's resize is another implementation of the same bilinear interpolation.
    for row in (0, 1000, 1796):
        enlarged = Image.fromarray(small[row].reshape(8, 8).astype(np.float32)).resize(
            (32, 32), Image.Resampling.BILINEAR
        )
        difference = everything.images[row, 0].numpy() - np.asarray(enlarged) * 255 / 16
        assert np.abs(difference).max() < 0.6


def test_the_parts_of_the_digits_do_not_change_from_release_to_release() -> None:
    # Published results name this split: a change of these figures is a change of the data.
    test = read_images("digits", "test")
    assert test.labels.sum().item() == 1613
    assert test.images.sum().item() == 28_722_617
