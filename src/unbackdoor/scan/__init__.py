"""Scanners: is this model backdoored, which class, what trigger?"""

from unbackdoor.registry import Registry
from unbackdoor.scan.base import Finding, Reconstruction, Scanner
from unbackdoor.scan.neural_cleanse import NeuralCleanse

SCANNERS: Registry[Scanner] = Registry("scanner", NeuralCleanse)
"""All scanners, by name."""

__all__ = ["SCANNERS", "Finding", "NeuralCleanse", "Reconstruction", "Scanner"]
