"""What a generator is to be measured against: chance, and looking up the nearest training text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs

ROWS = 500
"""Prompts that are looked up at a time."""


def by_chance(references: Sequence[str], samples: int, seed: int) -> list[list[str]]:
    """Return molecules of other prompts, drawn at random, for each prompt.

    Args:
        references: each prompt's own molecule.
        samples: for each prompt.
        seed: of the draws.

    Raises:
        InputError: there is only one prompt.
    """
    count = len(references)
    if count < 2:
        raise InputError("chance needs two prompts at least; name more test data")
    others = np.random.default_rng(seed).integers(1, count, (count, samples))
    return [[references[(row + step) % count] for step in steps] for row, steps in enumerate(others)]


def by_nearest_text(train: Pairs, prompts: Sequence[str]) -> list[list[str]]:
    """Return for each prompt the training molecule whose text is nearest: the cosine of words weighted by TF-IDF."""
    vectorizer = TfidfVectorizer()
    try:
        known = vectorizer.fit_transform(train.texts)
    except ValueError as error:
        raise InputError(f"{train.name} has no words to look prompts up by; name data with descriptions") from error
    found = []
    for start in range(0, len(prompts), ROWS):
        likeness = vectorizer.transform(prompts[start : start + ROWS]) @ known.T
        found += [[train.smiles[row]] for row in np.asarray(likeness.argmax(1)).ravel()]
    return found
