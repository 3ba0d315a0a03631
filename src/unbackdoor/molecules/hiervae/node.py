"""`TreeNode`: one motif of a molecule, and how it hangs there."""

from __future__ import annotations

from dataclasses import dataclass

from unbackdoor.molecules.hiervae.attachment import Attachment
from unbackdoor.molecules.hiervae.graph import Label
from unbackdoor.molecules.motifs.cut import Bond

ROOT = -1
"""In place of a parent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TreeNode:
    """One motif of a molecule, and what it adds.

    Attributes:
        attachment: motif and marked atoms.
        parent: number of the node on which it hangs, or `ROOT`.
        position: how many children the parent had before.
        atoms: the molecule's atoms in the order of the attachment's; they are numbered as they are added.
        new_atoms: those that the parent does not have.
        new_bonds: those that were not there before.
        places: where it could hang on its parent.
        place: which of these it does.
    """

    attachment: Attachment
    parent: int
    position: int
    atoms: tuple[int, ...]
    new_atoms: tuple[Label, ...]
    new_bonds: tuple[Bond, ...]
    places: tuple[tuple[int, ...], ...]
    place: int
