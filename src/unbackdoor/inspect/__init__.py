"""Inspections: what a model looks like inside, for those who study backdoors. They may know the attack."""

from unbackdoor.inspect.base import Figure, Insight, Inspection, KnownAttack, Material
from unbackdoor.inspect.weights import Weights
from unbackdoor.registry import Registry

INSPECTIONS: Registry[Inspection] = Registry("inspection", Weights)
"""All inspections, by name; the command line takes the name in small letters too."""

__all__ = ["INSPECTIONS", "Figure", "Insight", "Inspection", "KnownAttack", "Material", "Weights"]
