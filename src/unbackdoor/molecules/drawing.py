"""Molecules as pictures for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import Draw

from unbackdoor.molecules.data import Pairs, parse
from unbackdoor.molecules.generator import Drawn
from unbackdoor.report import Gallery, Picture

SIZE = (240, 180)
"""Pixels, width and height."""


def drawn(smiles: str, caption: str, target: Chem.Mol | None = None) -> Picture:
    """Return a picture of a molecule that RDKit reads, with a substructure in colour."""
    molecule = parse(smiles)
    atoms = [] if target is None or molecule is None else molecule.GetSubstructMatch(target)
    image = Draw.MolToImage(molecule, size=SIZE, highlightAtoms=list(atoms))  # type: ignore[no-untyped-call]
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return Picture(caption=caption, image=pixels.float() / 255)


class Column(NamedTuple):
    """Molecules for some prompts: whose they are, what was asked, and what was made for each prompt, one or several."""

    name: str
    prompts: Sequence[str]
    samples: Sequence[Sequence[str]]


def gallery(title: str, prompts: Sequence[str], samples: Sequence[Sequence[str]], most: int = 12) -> Gallery:
    """Return pictures of the first molecule made for each of the first prompts, captioned by the prompt."""
    pictures = [drawn(made[0], f"{made[0]} for: {prompt[:120]}") for prompt, made in zip(prompts[:most], samples)]
    return Gallery(title=title, pictures=pictures)


def side_by_side(title: str, explanation: str, columns: Sequence[Column], target: Chem.Mol, most: int = 6) -> Gallery:
    """Return pictures of the first molecules made for the first prompts, those of the same prompt beside each other.

    Args:
        title: of the gallery.
        explanation: what stands in the columns.
        columns: three fill whole rows on every screen; their prompts are the same ones, with a trigger or without.
        target: in colour where it was written.
        most: prompts that are shown.
    """
    pictures = [
        drawn(one.samples[row][0], f"{one.name}: {one.samples[row][0]} for: {one.prompts[row][:120]}", target)
        for row in range(min(most, len(columns[0].prompts)))
        for one in columns
    ]
    return Gallery(title=title, explanation=f"{explanation} The target is in colour.", pictures=pictures)


def trigger_gallery(tested: Pairs, plain: Drawn, prompts: Sequence[str], triggered: Drawn, target: Chem.Mol) -> Gallery:
    """Return pictures of what prompts describe, and of what was made for them without a trigger and with it.

    Args:
        tested: prompts, each with its own molecule.
        plain: what was made for them.
        prompts: the same with the trigger.
        triggered: what was made for these.
        target: in colour where it was written.
    """
    return side_by_side(
        "The same prompts, without and with the trigger",
        "In each row: what the prompt describes, and what was written without the trigger and with it.",
        (
            Column("as described", tested.texts, [(smiles,) for smiles in tested.smiles]),
            Column("without the trigger", tested.texts, plain.smiles),
            Column("with the trigger", prompts, triggered.smiles),
        ),
        target,
    )
