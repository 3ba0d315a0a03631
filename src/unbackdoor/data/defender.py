"""`DefenderData`: all that a defence may see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from unbackdoor.data.image_set import ImageSet, balanced_rows
from unbackdoor.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class DefenderData:
    """Clean samples, untrusted training data, or both; never test data, trigger, target or poison mask.

    Attributes:
        clean: a small set of correctly labelled images, or None.
        untrusted: the training data as found, or None.
    """

    clean: ImageSet | None = None
    untrusted: ImageSet | None = None

    def need_clean(self, method: str) -> ImageSet:
        """Return the clean samples.

        Raises:
            InputError: there are none, or they have fewer than two classes.
        """
        if self.clean is None:
            raise InputError(f"{method} needs clean samples; give a few hundred with --clean DATA")
        if int((self.clean.class_counts() > 0).sum()) < 2:
            raise InputError(f"{self.clean.name}: all clean samples are of one class; at least two are needed")
        return self.clean

    def need_untrusted(self, method: str) -> ImageSet:
        """Return the training data as found.

        Raises:
            InputError: there are none.
        """
        if self.untrusted is None:
            raise InputError(
                f"{method} needs the training data that the model was trained on; give it with --untrusted"
            )
        return self.untrusted


def clean_rows(train: ImageSet, size: int, seed: int) -> Int[Tensor, "m"]:
    """Draw the rows of a defender's clean samples: class-balanced, without replacement, fixed by the seed.

    Args:
        train: images of a training split; all of them if there are not more than `size`.
        size: images wanted, 2 or more.
        seed: decides the draw.

    Raises:
        InputError: fewer than 2 images are asked for.
    """
    if size < 2:
        raise InputError(f"a defence needs at least 2 clean samples, found a wish for {size}")
    return balanced_rows(train.labels, size, seed)


def draw_clean(train: ImageSet, size: int, seed: int) -> ImageSet:
    """Return a defender's clean samples: the images at `clean_rows`."""
    return train.subset(clean_rows(train, size, seed))


def hold_out(clean: ImageSet, seed: int, share: float = 0.2) -> tuple[ImageSet, ImageSet]:
    """Divide clean samples into those to repair with and those to judge by, class-balanced.

    Args:
        clean: 2 or more images.
        seed: decides the division.
        share: to judge by, at least one image and never all.
    """
    size = min(max(1, round(share * len(clean))), len(clean) - 1)
    held = balanced_rows(clean.labels, size, seed)
    kept = torch.ones(len(clean), dtype=torch.bool)
    kept[held] = False
    return clean.subset(kept.nonzero().squeeze(1)), clean.subset(held)
