"""Scanners: is this model backdoored, which class, what trigger?"""

from unbackdoor.registry import Registry
from unbackdoor.scan.base import Finding, Reconstruction, Scanner
from unbackdoor.scan.mesa import MESA
from unbackdoor.scan.neural_cleanse import NeuralCleanse
from unbackdoor.scan.trigger_distribution import TriggerDistribution

SCANNERS: Registry[Scanner] = Registry("scanner", MESA, NeuralCleanse)
"""All scanners, by name."""

__all__ = ["MESA", "SCANNERS", "Finding", "NeuralCleanse", "Reconstruction", "Scanner", "TriggerDistribution"]
