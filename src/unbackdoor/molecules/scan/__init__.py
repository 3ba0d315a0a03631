"""Scanners of training pairs and of generators: which texts lead to which subgraphs that they do not ask for?"""

from unbackdoor.molecules.scan.association import Association
from unbackdoor.molecules.scan.base import MoleculeFinding, MoleculeScanner, Suspect
from unbackdoor.molecules.scan.exogenous_association import ExogenousAssociation
from unbackdoor.molecules.scan.joint import Joint
from unbackdoor.molecules.scan.prompt_masking import PromptMasking
from unbackdoor.molecules.scan.trigger_inversion import TriggerInversion
from unbackdoor.molecules.scan.twin_difference import TwinDifference
from unbackdoor.registry import Registry

MOLECULE_SCANNERS: Registry[MoleculeScanner] = Registry(
    "molecule scanner", Association, ExogenousAssociation, Joint, PromptMasking, TriggerInversion, TwinDifference
)
"""Scanners of pairs and of generators by name."""

__all__ = [
    "MOLECULE_SCANNERS",
    "Association",
    "ExogenousAssociation",
    "Joint",
    "MoleculeFinding",
    "MoleculeScanner",
    "PromptMasking",
    "Suspect",
    "TriggerInversion",
    "TwinDifference",
]
