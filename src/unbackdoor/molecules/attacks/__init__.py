"""Attacks on text-guided molecule generation."""

from unbackdoor.molecules.attacks.adaptive_badgraph import AdaptiveBadGraph
from unbackdoor.molecules.attacks.badgraph import BadGraph, Poisoned
from unbackdoor.molecules.attacks.saved import MOLECULE_ATTACKS, SavedBadGraph, load_attack, save_attack
from unbackdoor.molecules.attacks.subgraph import attach, read_target

__all__ = [
    "MOLECULE_ATTACKS",
    "AdaptiveBadGraph",
    "BadGraph",
    "Poisoned",
    "SavedBadGraph",
    "attach",
    "load_attack",
    "read_target",
    "save_attack",
]
