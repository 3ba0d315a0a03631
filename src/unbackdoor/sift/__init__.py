"""Sifters: which training rows are poisoned?"""

from unbackdoor.registry import Registry
from unbackdoor.sift.activation_clustering import ActivationClustering
from unbackdoor.sift.base import Sifter, Suspicion
from unbackdoor.sift.beatrix import Beatrix
from unbackdoor.sift.consensus import Consensus
from unbackdoor.sift.fct import FCT
from unbackdoor.sift.loss_isolation import LossIsolation
from unbackdoor.sift.quick_model import quick_model
from unbackdoor.sift.scan import SCAn
from unbackdoor.sift.spectral_signatures import SpectralSignatures
from unbackdoor.sift.spectre import SPECTRE
from unbackdoor.sift.strip import STRIP

SIFTERS: Registry[Sifter] = Registry(
    "sifter", ActivationClustering, Beatrix, Consensus, FCT, LossIsolation, SCAn, SPECTRE, STRIP, SpectralSignatures
)
"""All sifters, by name."""

__all__ = [
    "FCT",
    "SIFTERS",
    "SPECTRE",
    "STRIP",
    "ActivationClustering",
    "Beatrix",
    "Consensus",
    "LossIsolation",
    "SCAn",
    "Sifter",
    "SpectralSignatures",
    "Suspicion",
    "quick_model",
]
