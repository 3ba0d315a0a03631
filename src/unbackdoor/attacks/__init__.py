"""Attacks: how a trigger is made, and how data or training is poisoned with it."""

from unbackdoor.attacks.adaptive_blend import AdaptiveBlend
from unbackdoor.attacks.adaptive_patch import AdaptivePatch
from unbackdoor.attacks.adaptive_trap import AdaptiveTrap
from unbackdoor.attacks.badnets import BadNets
from unbackdoor.attacks.base import CLEAN, COVER, POISON, Attack, FittedAttack, Given
from unbackdoor.attacks.blended import Blended
from unbackdoor.attacks.blind import Blind
from unbackdoor.attacks.bpp import BPP
from unbackdoor.attacks.criterion import AllToAll, AllToOne, Criterion, SourceSpecific
from unbackdoor.attacks.ctrl import CTRL
from unbackdoor.attacks.ftrojan import FTrojan
from unbackdoor.attacks.input_aware import InputAware
from unbackdoor.attacks.invisible import Invisible
from unbackdoor.attacks.label_consistent import LabelConsistent
from unbackdoor.attacks.lf import LF
from unbackdoor.attacks.lira import LIRA
from unbackdoor.attacks.mesa_patch import MESAPatch
from unbackdoor.attacks.online import Online, OnlineHook
from unbackdoor.attacks.poisoning import Poisoning
from unbackdoor.attacks.refool import Refool
from unbackdoor.attacks.saved import SavedAttack, load_attack, save_attack
from unbackdoor.attacks.sig import SIG
from unbackdoor.attacks.smooth import Smooth
from unbackdoor.attacks.ssba import SSBA
from unbackdoor.attacks.stealth import Stealth, stealth
from unbackdoor.attacks.tact import TaCT
from unbackdoor.attacks.trigger import Additive, Stamp, Trigger
from unbackdoor.attacks.trojannn import TrojanNN
from unbackdoor.attacks.wanet import WaNet
from unbackdoor.registry import Registry

ATTACKS: Registry[Attack] = Registry(
    "attack",
    AdaptiveBlend,
    AdaptivePatch,
    AdaptiveTrap,
    BadNets,
    Blended,
    Blind,
    BPP,
    CTRL,
    FTrojan,
    InputAware,
    Invisible,
    LabelConsistent,
    LF,
    LIRA,
    MESAPatch,
    Refool,
    SIG,
    Smooth,
    SSBA,
    TaCT,
    TrojanNN,
    WaNet,
    elsewhere={"None": "models are trained on clean data by `unbackdoor train`"},
)
"""All attacks, by name."""

__all__ = [
    "ATTACKS",
    "BPP",
    "CLEAN",
    "COVER",
    "CTRL",
    "LF",
    "LIRA",
    "POISON",
    "SIG",
    "SSBA",
    "AdaptiveBlend",
    "AdaptivePatch",
    "AdaptiveTrap",
    "Additive",
    "AllToAll",
    "AllToOne",
    "Attack",
    "BadNets",
    "Blended",
    "Blind",
    "Criterion",
    "FTrojan",
    "FittedAttack",
    "Given",
    "InputAware",
    "Invisible",
    "LabelConsistent",
    "MESAPatch",
    "Online",
    "OnlineHook",
    "Poisoning",
    "Refool",
    "SavedAttack",
    "Smooth",
    "SourceSpecific",
    "Stamp",
    "Stealth",
    "TaCT",
    "Trigger",
    "TrojanNN",
    "WaNet",
    "load_attack",
    "save_attack",
    "stealth",
]
