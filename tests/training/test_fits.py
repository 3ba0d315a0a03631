"""Data that do not fit a model are refused with a sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.planted import CLASSES, network, pictures
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.training import check_fits

FITS = pictures(20, 0)
TOO_NARROW = replace(FITS, images=FITS.images[..., :11], name="narrow")
TOO_FEW_CHANNELS = replace(FITS, images=FITS.images[:, :1], name="grey")
A_CLASS_MORE = replace(FITS, class_names=(*FITS.class_names, "i"), name="nine")


def test_data_that_fit_pass_and_missing_data_too() -> None:
    check_fits(network(0), FITS, None)
    check_fits(network(0))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (TOO_NARROW, "^narrow has images of 3 x 12 x 11, but the model was made for 3 x 12 x 12; convert"),
        (TOO_FEW_CHANNELS, "^grey has images of 1 x 12 x 12, but the model was made for 3 x 12 x 12; convert"),
        (A_CLASS_MORE, f"^nine has 9 classes, but the model tells {CLASSES} apart; use data of the same classes"),
    ],
    ids=["narrow", "grey", "a class more"],
)
def test_any_set_that_does_not_fit_is_named(data: ImageSet, words: str) -> None:
    for sets in ((data,), (FITS, data), (None, data)):
        with pytest.raises(InputError, match=words):
            check_fits(network(0), *sets)
