"""CLP: channel-Lipschitz pruning, which needs no data.

Zheng, Tang, Li, Liu, "Data-free Backdoor Removal based on Channel Lipschitzness" (ECCV 2022). A channel that answers to
a trigger changes much when the image changes little. How much it can at most is known from the weights: for a
convolution with filters W_k, followed by batch normalisation,

    L_k = |gamma_k| / sqrt(var_k + eps) * || W_k ||,

where || W_k || is the largest singular value of the filter as a matrix of input channels by positions. The channels
with L_k > mean + u std, over the channels of their layer, are switched off: gamma_k = beta_k = 0.

Published code takes the convolution that stands before a normalisation in the list of modules, which in pre-activation
networks is another than the one that is run before it, or only one of several whose outputs add up in the residual
stream. Ours runs one image and follows the operations back. Of several convolutions the channel sees all inputs, and
its bound is the root of the sum of their squared norms. Published code also leaves out eps, so that a dead channel
gives infinity or no number, and decomposes one filter at a time.

The paper fixes u = 3 (BackdoorBench 5 on Tiny-ImageNet). Here u is chosen where there are clean samples: the least u,
which prunes most, before accuracy on them falls by more than `allowance`. All of them may judge, since none is learned
from. Without clean samples, or with `choose` off, `u` is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Needed, Purifier
from unbackdoor.purify.channels import norm_layers
from unbackdoor.purify.pruning import check_allowance, prune_outliers
from unbackdoor.scan.lipschitz import channel_lipschitz, convolutions_before
from unbackdoor.training import History, Runtime


@dataclass(frozen=True, kw_only=True)
class CLP(Purifier):
    """Switch off the channels that can change most when the image changes little.

    Attributes:
        u: standard deviations above the layer's mean from which a channel goes, 0 or more, if it is not chosen.
        choose: whether u is chosen by clean samples, if there are any.
        allowance: accuracy on clean samples that may be lost by the choice, 0 to 1.
    """

    needs: ClassVar[frozenset[Needed]] = frozenset()

    u: float = 3.0
    choose: bool = True
    allowance: float = 0.03

    def __post_init__(self) -> None:
        if not 0 <= self.u < math.inf:
            raise InputError(f"CLP: u must be a number of 0 or more, found {self.u}")
        check_allowance("CLP", self.allowance)

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Prune `model` in place (see `Purifier.repair`)."""
        held = data.need_clean("CLP") if self.choose and data.clean is not None else None
        found = norm_layers(runtime.settle(model), "CLP", statistics=True)
        before = convolutions_before(model, found, runtime)
        if not before:
            raise InputError(
                "CLP prunes batch normalization that comes after convolutions, and this network has none; choose"
                " another method"
            )
        layers = [found[name] for name in before]
        scores = [channel_lipschitz(found[name], convolutions) for name, convolutions in before.items()]
        sweeps, note = prune_outliers("CLP", model, layers, scores, self.u, held, self.allowance, runtime)
        return History(epochs=0, sweeps=sweeps, notes=(note,))
