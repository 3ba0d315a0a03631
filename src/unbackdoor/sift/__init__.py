"""Sifters: which training rows are poisoned? And filters: does an image that comes in carry a trigger?"""

from unbackdoor.registry import Registry
from unbackdoor.sift.activation_clustering import ActivationClustering
from unbackdoor.sift.base import Sifter, Suspicion
from unbackdoor.sift.beatrix import Beatrix
from unbackdoor.sift.consensus import Consensus
from unbackdoor.sift.fct import FCT
from unbackdoor.sift.input_filter import InputFilter
from unbackdoor.sift.loss_isolation import LossIsolation
from unbackdoor.sift.quick_model import quick_model
from unbackdoor.sift.scale_up import ScaleUp
from unbackdoor.sift.scan import SCAn
from unbackdoor.sift.spectral_signatures import SpectralSignatures
from unbackdoor.sift.spectre import SPECTRE
from unbackdoor.sift.strip import STRIP
from unbackdoor.sift.teco import TeCo

SIFTERS: Registry[Sifter] = Registry(
    "sifter", ActivationClustering, Beatrix, Consensus, FCT, LossIsolation, SCAn, SPECTRE, STRIP, SpectralSignatures
)
"""All sifters, by name."""

INPUT_FILTERS: Registry[InputFilter] = Registry("input_filter", ScaleUp, TeCo)
"""All filters of inputs, by name."""

__all__ = [
    "FCT",
    "INPUT_FILTERS",
    "SIFTERS",
    "SPECTRE",
    "STRIP",
    "ActivationClustering",
    "Beatrix",
    "Consensus",
    "InputFilter",
    "LossIsolation",
    "SCAn",
    "ScaleUp",
    "Sifter",
    "SpectralSignatures",
    "Suspicion",
    "TeCo",
    "quick_model",
]
