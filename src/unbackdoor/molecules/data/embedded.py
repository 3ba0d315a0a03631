"""Pairs that are made here: molecules put together from rings and groups, described by a template.

For tests and demonstrations without any data at hand. The texts name what is in the molecule and nothing else, so what
a model learns from them says little about real descriptions.
"""

from __future__ import annotations

import itertools
import random

from unbackdoor.molecules.data.molecule import canonical, parse
from unbackdoor.molecules.data.table import Table

TEMPLATES = "templates"
"""Name of this source."""

RINGS = {
    "benzene": "c1({})ccc({})cc1",
    "pyridine": "c1({})ccc({})nc1",
    "thiophene": "c1({})ccc({})s1",
    "furan": "c1({})ccc({})o1",
    "cyclohexane": "C1({})CCC({})CC1",
    "cyclopentane": "C1({})CCC({})C1",
    "piperidine": "C1({})CCN({})CC1",
    "naphthalene": "c1({})ccc2cc({})ccc2c1",
    "indole": "c1({})ccc2[nH]cc({})c2c1",
    "pyrimidine": "c1({})cnc({})nc1",
}
GROUPS = {
    "methyl": "C",
    "ethyl": "CC",
    "propyl": "CCC",
    "isopropyl": "C(C)C",
    "hydroxy": "O",
    "methoxy": "OC",
    "amino": "N",
    "dimethylamino": "N(C)C",
    "fluoro": "F",
    "chloro": "Cl",
    "bromo": "Br",
    "cyano": "C#N",
    "carboxy": "C(=O)O",
    "acetyl": "C(C)=O",
    "carbamoyl": "C(N)=O",
    "nitro": "[N+](=O)[O-]",
    "sulfanyl": "S",
    "trifluoromethyl": "C(F)(F)F",
}
SENTENCES = (
    "The molecule is a {ring} that carries a {first} group and a {second} group.",
    "The molecule is a member of the class of {ring}s with {first} and {second} substituents.",
    "It is a {first} and {second} derivative of {ring}.",
)


def template_table(seed: int = 0) -> Table:
    """Return the pairs, one a molecule, in an order that the seed draws."""
    draws = random.Random(seed)
    pairs: dict[str, str] = {}
    for (ring, pattern), first, second in itertools.product(RINGS.items(), GROUPS, GROUPS):
        built = parse(pattern.format(GROUPS[first], GROUPS[second]))
        sentence = draws.choice(SENTENCES)
        if built is not None:
            pairs.setdefault(canonical(built), sentence.format(ring=ring, first=first, second=second))
    rows = list(pairs.items())
    draws.shuffle(rows)
    return Table(smiles=tuple(smiles for smiles, _ in rows), texts=tuple(text for _, text in rows), name=TEMPLATES)
