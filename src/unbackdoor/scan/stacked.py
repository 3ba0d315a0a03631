"""MESA's two networks, many of each at once: row by row they are what the paper trains one by one.

Parameters have a leading dimension, one entry for each network of the stack, and a layer is one batched product.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CHUNK, CHUNKS = 16, 4
NOISE = CHUNK * CHUNKS
"""Numbers from which a trigger is made."""
SLOPE = 0.2


class StackedLinear(nn.Module):
    """Linear layers side by side.

    Args:
        rows: of the stack. All start with the same weights, drawn as PyTorch draws them.
        inputs: of a layer.
        outputs: of a layer.
        draws: source of the weights.
    """

    def __init__(self, rows: int, inputs: int, outputs: int, draws: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        weight = torch.empty(1, inputs, outputs).uniform_(-bound, bound, generator=draws)
        bias = torch.empty(1, 1, outputs).uniform_(-bound, bound, generator=draws)
        self.weight = nn.Parameter(weight.repeat(rows, 1, 1))
        self.bias = nn.Parameter(bias.repeat(rows, 1, 1))

    def forward(self, features: Float[Tensor, "s b i"]) -> Float[Tensor, "s b o"]:
        """Return each row's features times its weights, and its bias."""
        return torch.baddbmm(self.bias, features, self.weight)


class StackedNorm(nn.Module):
    """Batch normalisations side by side, each over its own row's batch while `training`.

    Afterwards they use the statistics of the last batch that was seen in training; see `Generators.settle`.

    Args:
        rows: of the stack.
        features: that are normalised.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, rows: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(rows, 1, features))
        self.bias = nn.Parameter(torch.zeros(rows, 1, features))
        self.register_buffer("mean", torch.zeros(rows, 1, features))
        self.register_buffer("variance", torch.ones(rows, 1, features))

    def forward(self, features: Float[Tensor, "s b h"]) -> Float[Tensor, "s b h"]:
        """Return the features with mean 0 and variance 1, scaled and shifted."""
        if self.training:
            variance, mean = torch.var_mean(features, 1, correction=0, keepdim=True)
            self.mean, self.variance = mean.detach(), variance.detach()
        else:
            mean, variance = self.mean, self.variance
        return (features - mean) * (variance + 1e-5).rsqrt() * self.weight + self.bias


class Generators(nn.Module):
    """Networks from noise to triggers; the noise comes in four parts, one a layer.

    Args:
        rows: of the stack.
        shape: channels, height and width of a trigger.
        hidden: features of a layer.
        draws: source of the weights.
    """

    def __init__(self, rows: int, shape: tuple[int, int, int], hidden: int, draws: torch.Generator) -> None:
        super().__init__()
        self.rows, self.shape = rows, shape
        inputs = (CHUNK, *[hidden + CHUNK] * (CHUNKS - 1))
        outputs = (*[hidden] * (CHUNKS - 1), math.prod(shape))
        self.layers = nn.ModuleList(StackedLinear(rows, one, other, draws) for one, other in zip(inputs, outputs))
        self.norms = nn.ModuleList(StackedNorm(rows, hidden) for _ in range(CHUNKS - 1))

    def forward(self, noise: Float[Tensor, "b z"]) -> Float[Tensor, "s b c p p"]:
        """Return each network's trigger for each noise, in [0, 1]."""
        first, *others = torch.split(noise.expand(self.rows, -1, -1), CHUNK, 2)
        features = self.layers[0](first)
        for norm, layer, part in zip(self.norms, self.layers[1:], others):
            features = layer(torch.cat([F.leaky_relu(norm(features), SLOPE), part], 2))
        triggers: Tensor = features.sigmoid().unflatten(2, self.shape)
        return triggers

    @torch.no_grad()
    def settle(self, noise: Float[Tensor, "b z"]) -> None:
        """Go into evaluation mode with the batch statistics of this noise."""
        self.train()
        self(noise)
        self.eval()


class Statistics(nn.Module):
    """MINE's networks T: from a noise and a trigger to a number.

    Args:
        rows: of the stack.
        noise: numbers in a noise.
        trigger: numbers in a trigger.
        hidden: features of a layer.
        draws: source of the weights.
    """

    def __init__(self, rows: int, noise: int, trigger: int, hidden: int, draws: torch.Generator) -> None:
        super().__init__()
        # The sum of two products without bias, and a bias, is a product with both side by side.
        self.first = StackedLinear(rows, noise + trigger, hidden, draws)
        self.second = StackedLinear(rows, hidden, hidden, draws)
        self.last = StackedLinear(rows, hidden, 1, draws)

    def forward(self, noise: Float[Tensor, "b z"], triggers: Float[Tensor, "s b v"]) -> Float[Tensor, "s b"]:
        """Return T for each pair of each row."""
        pairs = torch.cat([noise.expand(len(triggers), -1, -1), triggers], 2)
        features = F.leaky_relu(self.second(F.leaky_relu(self.first(pairs), SLOPE)), SLOPE)
        values: Tensor = self.last(features).squeeze(2)
        return values
