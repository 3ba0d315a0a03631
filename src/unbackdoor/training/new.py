"""Making new networks for images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Description, Network, build_network
from unbackdoor.models.build import find_architecture
from unbackdoor.training.runtime import Runtime

STATISTICS_ROWS = 5000
"""Images from which the normalisation is computed."""


class UserNetwork(partial[Any]):
    """A function of the user's that builds a network, and the name `module:function` that the user gave."""

    architecture: str

    @classmethod
    def named(cls, architecture: str) -> UserNetwork:
        """Import the function.

        Raises:
            InputError: there is no such module or function.
        """
        network = cls(find_architecture(architecture))
        network.architecture = architecture
        return network


def architecture_of(model: Callable[[int, int], nn.Module]) -> str:
    """Return the name by which a description knows the network that this builds."""
    return model.architecture if isinstance(model, UserNetwork) else cast("partial[nn.Module]", model).func.__name__


def new_network(model: Callable[[int, int], nn.Module], train: ImageSet, runtime: Runtime) -> Network:
    """Return an untrained network for these images, its weights fixed by the seed.

    The normalisation is the data's own mean and standard deviation per channel.
    """
    constructor = cast("partial[nn.Module]", model)
    # Spread over all rows: image folders come sorted by class.
    sample = train.images[:: max(1, len(train) // STATISTICS_ROWS)].float() / 255
    mean = sample.mean((0, 2, 3)).tolist()
    # A channel that never changes must not divide by zero.
    std = sample.std((0, 2, 3)).clamp_min(1 / 255).tolist()
    description = Description(
        architecture=architecture_of(model),
        arguments=dict(constructor.keywords),
        class_names=train.class_names,
        image_shape=train.shape,
        mean=tuple(round(value, 4) for value in mean),
        std=tuple(round(value, 4) for value in std),
    )
    return build_network(description, seed=runtime.seed)


def network_options(network: Network) -> dict[str, Any]:
    """Return the network's name and options, as `options_of` gives them of a method."""
    return {"name": network.description.architecture, **network.description.arguments}
