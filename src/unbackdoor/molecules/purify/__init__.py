"""Purifiers: take the backdoor out of a generator of molecules."""

from unbackdoor.molecules.purify.base import MoleculePurifier, Repaired
from unbackdoor.molecules.purify.decode_pruning import DecodePruning
from unbackdoor.molecules.purify.latent_purification import LatentPurification
from unbackdoor.molecules.purify.retraining import Retraining
from unbackdoor.registry import Registry

MOLECULE_PURIFIERS: Registry[MoleculePurifier] = Registry(
    "molecule purifier", DecodePruning, LatentPurification, Retraining
)
"""Purifiers of generators by name."""

__all__ = [
    "MOLECULE_PURIFIERS",
    "DecodePruning",
    "LatentPurification",
    "MoleculePurifier",
    "Repaired",
    "Retraining",
]
