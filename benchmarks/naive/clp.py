"""CLP: a singular value decomposition a filter, each convolution with the normalisation after it in the module list."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.purify import CLP

from .common import Samples
from .outliers import prune_outliers


def repair(method: CLP, model: Network, clean: ImageSet, seed: int, device: torch.device) -> None:
    """Prune in place."""
    scores: dict[nn.BatchNorm2d, Tensor] = {}
    last: nn.Conv2d | None = None
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            last = module
        elif isinstance(module, nn.BatchNorm2d) and last is not None and last.out_channels == module.num_features:
            scores[module] = channel_lipschitz(last, module)
    samples = Samples(copy.copy(clean), "none", device, seed)
    prune_outliers(model, scores, samples, method.u, method.choose, method.allowance, bias=True)


@torch.no_grad()
def channel_lipschitz(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Return the bound of each channel, one after the other."""
    bounds = []
    for channel in range(norm.num_features):
        matrix = convolution.weight[channel].reshape(convolution.weight.shape[1], -1).cpu()
        largest = torch.linalg.svd(matrix)[1].max().item()
        scale = abs(norm.weight[channel].item()) / math.sqrt(norm.running_var[channel].item() + norm.eps)
        bounds.append(largest * scale)
    return torch.tensor(bounds)
