"""The purifiers once more, plainly, as published code takes their steps: what ours are timed beside.

float32, contiguous NCHW, one PIL image at a time through crop and flip, as many passes forwards and backwards as
published code makes, wasteful ones too, but no looking at test data after each epoch. Options and lengths are those of
the method in `unbackdoor.purify` that is given; where published code chooses by test data, these choose as ours do, by
held-out clean samples. They exist for `purifiers_speed.py` and for tests, which compare their steps with ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.purify import Purifier

from . import anp, bnp, clp, ep, fp, ft, ft_init, ft_sam, i_bau, mcr, nad, nc_unlearning, npd, rnp, sau, tsbd

Repair = Callable[..., float | None]
"""Options of ours, the network that is repaired in place, clean samples, seed, device and, where the method needs them,
the training data as found, to the seconds that ours does not owe."""

NAIVE: dict[str, Repair] = {
    "ANP": anp.repair,
    "BNP": bnp.repair,
    "CLP": clp.repair,
    "EP": ep.repair,
    "FP": fp.repair,
    "FT": ft.repair,
    "FTInit": ft_init.repair,
    "FTSAM": ft_sam.repair,
    "IBAU": i_bau.repair,
    "MCR": mcr.repair,
    "NAD": nad.repair,
    "NCUnlearning": nc_unlearning.repair,
    "NPD": npd.repair,
    "RNP": rnp.repair,
    "SAU": sau.repair,
    "TSBD": tsbd.repair,
}
"""The plain purifiers, by the names of ours."""


def purify(
    method: Purifier,
    model: Network,
    clean: ImageSet,
    seed: int,
    device: torch.device,
    untrusted: ImageSet | None = None,
) -> tuple[Network, float]:
    """Return a repaired copy of the model, and the seconds of work that gave other models, which ours does not make.

    Args:
        method: a purifier of ours, of which only the options are read.
        model: not changed.
        clean: samples.
        seed: of everything that is drawn.
        device: to compute on.
        untrusted: the training data as found, for a method that needs them.
    """
    torch.manual_seed(seed)
    repaired = copy.deepcopy(model).float().to(device, memory_format=torch.contiguous_format).requires_grad_(True)
    found = (untrusted,) if "untrusted" in method.needs else ()
    others = NAIVE[type(method).__name__](method, repaired, clean, seed, device, *found)
    return repaired.eval(), others or 0.0
