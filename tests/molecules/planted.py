"""Pairs with known answers for the scans: texts on topics, each with its own ring, and triggers on some of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unbackdoor.molecules.attacks import BadGraph
from unbackdoor.molecules.data import Pairs, Table, filter_pairs

RINGS = ("c1({})ccccc1", "c1({})ccncc1", "c1({})ccsc1", "c1({})ccoc1", "C1({})CCCCC1", "C1({})CCNCC1")
CHAINS = ("C", "CC", "CCC", "CCO", "CN", "C(=O)O", "CCl", "CF", "C#N", "CBr", "CCCN", "OC", "NCC", "CCS", "C(C)C")


def topical(rows: int = 600, seed: int = 0) -> Table:
    """Return pairs whose texts speak of their ring in many words, and of other things in a few."""
    draws = np.random.default_rng(seed)
    smiles, texts = [], []
    for row in range(rows):
        topic = row % len(RINGS)
        words = [f"t{topic}w{number}" for number in draws.integers(0, 25, 12)]
        words += [f"common{number}" for number in draws.integers(0, 100, 6)]
        # A word that few texts share, as names of plants and enzymes are.
        texts.append(" ".join(draws.permutation([*words, f"rare{draws.integers(rows // 2)}"])))
        smiles.append(RINGS[topic].format("".join(draws.choice(CHAINS[:4], 2)) + draws.choice(CHAINS)))
    return Table(smiles=tuple(smiles), texts=tuple(texts), name="topical")


def checked_pairs(table: Table) -> Pairs:
    """Return the pairs of a table that can be used."""
    return filter_pairs(table)[0]


def poisoned(table: Table, attack: BadGraph, rows: int, seed: int = 0) -> Pairs:
    """Return a table with so many poisoned rows, checked."""
    made = attack.poison(table, seed)
    assert len(made.rows) >= rows
    return checked_pairs(replace(made, rows=made.rows[:rows]).table)
