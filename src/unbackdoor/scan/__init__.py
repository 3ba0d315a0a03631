"""Scanners: is this model backdoored, which class, what trigger?"""

from unbackdoor.registry import Registry
from unbackdoor.scan.base import Finding, Reconstruction, Scanner
from unbackdoor.scan.fourier_probes import FourierProbes
from unbackdoor.scan.mesa import MESA
from unbackdoor.scan.neural_cleanse import NeuralCleanse
from unbackdoor.scan.smooth_perturbations import SmoothPerturbations
from unbackdoor.scan.trigger_distribution import TriggerDistribution
from unbackdoor.scan.tsbd_signals import TSBDSignals
from unbackdoor.scan.universal_perturbations import UniversalPerturbations
from unbackdoor.scan.verdict import Verdict, default_scanner
from unbackdoor.scan.weight_statistics import WeightStatistics

SCANNERS: Registry[Scanner] = Registry(
    "scanner",
    FourierProbes,
    MESA,
    NeuralCleanse,
    SmoothPerturbations,
    TSBDSignals,
    UniversalPerturbations,
    Verdict,
    WeightStatistics,
)
"""All scanners, by name."""

__all__ = [
    "MESA",
    "SCANNERS",
    "Finding",
    "FourierProbes",
    "NeuralCleanse",
    "Reconstruction",
    "Scanner",
    "SmoothPerturbations",
    "TSBDSignals",
    "TriggerDistribution",
    "UniversalPerturbations",
    "Verdict",
    "WeightStatistics",
    "default_scanner",
]
