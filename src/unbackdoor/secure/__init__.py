"""Secure trainers: train a clean model on untrusted data."""

from unbackdoor.registry import Registry
from unbackdoor.secure.base import Part, SecureTrainer, Trained

TRAINERS: Registry[SecureTrainer] = Registry("trainer")
"""All secure trainers, by name."""

__all__ = ["TRAINERS", "Part", "SecureTrainer", "Trained"]
