"""Attacks on text-guided molecule generation."""

from unbackdoor.molecules.attacks.badgraph import BadGraph, Poisoned
from unbackdoor.molecules.attacks.saved import SavedBadGraph, load_attack, save_attack
from unbackdoor.molecules.attacks.subgraph import attach, read_target

__all__ = ["BadGraph", "Poisoned", "SavedBadGraph", "attach", "load_attack", "read_target", "save_attack"]
