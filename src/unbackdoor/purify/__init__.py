"""Purifiers: take the backdoor out of a model."""

from unbackdoor.purify.anp import ANP
from unbackdoor.purify.auto import Auto
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.bnp import BNP
from unbackdoor.purify.clp import CLP
from unbackdoor.purify.d_br import DBR
from unbackdoor.purify.ep import EP
from unbackdoor.purify.fp import FP
from unbackdoor.purify.ft import FT
from unbackdoor.purify.ft_init import FTInit
from unbackdoor.purify.ft_sam import FTSAM
from unbackdoor.purify.i_bau import IBAU
from unbackdoor.purify.mcr import MCR
from unbackdoor.purify.mesa import MESA
from unbackdoor.purify.nad import NAD
from unbackdoor.purify.nc_unlearning import NCUnlearning
from unbackdoor.purify.npd import NPD
from unbackdoor.purify.pixel_space import PixelSpace
from unbackdoor.purify.rnp import RNP
from unbackdoor.purify.sau import SAU
from unbackdoor.purify.tsbd import TSBD
from unbackdoor.registry import Registry

PURIFIERS: Registry[Purifier] = Registry(
    "purifier",
    ANP,
    Auto,
    BNP,
    CLP,
    DBR,
    EP,
    FP,
    FT,
    FTInit,
    FTSAM,
    IBAU,
    MCR,
    MESA,
    NAD,
    NCUnlearning,
    NPD,
    PixelSpace,
    RNP,
    SAU,
    TSBD,
)
"""All purifiers, by name."""

__all__ = [
    "ANP",
    "BNP",
    "CLP",
    "DBR",
    "EP",
    "FP",
    "FT",
    "FTSAM",
    "IBAU",
    "MCR",
    "MESA",
    "NAD",
    "NPD",
    "PURIFIERS",
    "RNP",
    "SAU",
    "TSBD",
    "Auto",
    "FTInit",
    "NCUnlearning",
    "PixelSpace",
    "Purifier",
]
