"""Attacks: how a trigger is made, and how data or training is poisoned with it."""

from unbackdoor.attacks.badnets import BadNets
from unbackdoor.attacks.base import CLEAN, COVER, POISON, Attack, FittedAttack
from unbackdoor.attacks.blended import Blended
from unbackdoor.attacks.criterion import AllToAll, AllToOne, Criterion
from unbackdoor.attacks.saved import SavedAttack, load_attack, save_attack
from unbackdoor.attacks.sig import SIG
from unbackdoor.attacks.trigger import Additive, Stamp, Trigger
from unbackdoor.registry import Registry

ATTACKS: Registry[Attack] = Registry("attack", BadNets, Blended, SIG)
"""All attacks, by name."""

__all__ = [
    "ATTACKS",
    "CLEAN",
    "COVER",
    "POISON",
    "SIG",
    "Additive",
    "AllToAll",
    "AllToOne",
    "Attack",
    "BadNets",
    "Blended",
    "Criterion",
    "FittedAttack",
    "SavedAttack",
    "Stamp",
    "Trigger",
    "load_attack",
    "save_attack",
]
