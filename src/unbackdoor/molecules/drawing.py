"""Molecules as pictures for a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import Draw

from unbackdoor.molecules.data import parse
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


def gallery(
    title: str, prompts: Sequence[str], samples: Sequence[Sequence[str]], target: Chem.Mol | None = None, most: int = 12
) -> Gallery:
    """Return pictures of the first molecule made for each of the first prompts, captioned by the prompt."""

    def pictures() -> Iterator[Picture]:
        for prompt, made in zip(prompts[:most], samples):
            yield drawn(made[0], f"{made[0]} for: {prompt[:120]}", target)

    explanation = "" if target is None else "The target is in colour where it was written."
    return Gallery(title=title, explanation=explanation, pictures=list(pictures()))
