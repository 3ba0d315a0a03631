"""Purifiers: take the backdoor out of a model."""

from unbackdoor.purify.base import Purifier
from unbackdoor.purify.ft import FT
from unbackdoor.purify.ft_sam import FTSAM
from unbackdoor.purify.npd import NPD
from unbackdoor.purify.sau import SAU
from unbackdoor.registry import Registry

PURIFIERS: Registry[Purifier] = Registry("purifier", FT, FTSAM, NPD, SAU)
"""All purifiers, by name."""

__all__ = ["FT", "FTSAM", "NPD", "PURIFIERS", "SAU", "Purifier"]
