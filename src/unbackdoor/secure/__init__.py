"""Secure trainers: train a clean model on untrusted data."""

from unbackdoor.registry import Registry
from unbackdoor.secure.abl import ABL
from unbackdoor.secure.base import Part, SecureTrainer, Trained
from unbackdoor.secure.d_st import DST
from unbackdoor.secure.dbd import DBD
from unbackdoor.secure.decoder import Decoder
from unbackdoor.secure.trap_and_replace import TrapAndReplace

TRAINERS: Registry[SecureTrainer] = Registry("trainer", ABL, DBD, DST, TrapAndReplace)
"""All secure trainers, by name."""

__all__ = ["ABL", "DBD", "DST", "TRAINERS", "Decoder", "Part", "SecureTrainer", "Trained", "TrapAndReplace"]
