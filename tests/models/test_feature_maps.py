"""Feature maps and the last linear layer are found by running a network, whatever its attributes are called."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.models import build_network, feature_map_names, last_linear, tapped
from unbackdoor.testing.samples import hooks_on, same_state, state_of

from .files import small_description


def images(channels: int, side: int) -> Tensor:
    return torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        # The first normalisation of layer2.0 still works at 32 x 32, but that is no end of a size.
        ("PreActResNet18", {"layer1.1": 32, "layer2.1": 16, "layer3.1": 8, "layer4.1": 4}),
        # The last pooling repeats the map of 1 x 1 to 7 x 7.
        ("VGG19BN", {"features.5": 32, "features.12": 16, "features.25": 8, "features.38": 4, "features.51": 2}),
    ],
)
def test_the_last_module_at_each_size_is_found_in_our_networks(architecture: str, expected: dict[str, int]) -> None:
    description = small_description(architecture=architecture, image_shape=(3, 32, 32))
    network = build_network(description, seed=3)
    names = feature_map_names(network, images(3, 32))
    with tapped(network, *names) as features:
        network.eval()(images(3, 32))
    assert {name: features[name].shape[-1] for name in names} == expected
    assert names == list(expected)


class Odd(nn.Module):
    """Its layers are registered from back to front, one activation serves two sizes, and a side branch comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Linear(4, 3)
        self.y = nn.Linear(4, 4)
        self.side = nn.Linear(3, 3)
        self.second = nn.Conv2d(4, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.Conv2d(3, 4, 3, 1, 1)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.act(self.first(x)))
        x = self.pool(self.act(self.second(x))).flatten(1)
        logits: Tensor = self.z(self.y(x))
        return logits


def test_order_is_that_of_running_and_a_module_counts_where_it_ran_last() -> None:
    network = Odd()
    assert feature_map_names(network, images(3, 8)) == ["norm", "act"]
    assert last_linear(network, images(3, 8)) is network.z


def test_maps_within_a_container_that_shrinks_are_found_up_to_its_own_size() -> None:
    inner = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1))
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), inner, nn.Flatten(), nn.Linear(16, 2))
    assert feature_map_names(network, images(3, 8)) == ["0", "1.1", "1"]


def test_a_network_without_maps_or_linear_layers_has_none() -> None:
    assert feature_map_names(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), images(3, 4)) == []
    assert feature_map_names(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1)), images(3, 4)) == []
    assert last_linear(nn.Sequential(nn.Conv2d(3, 2, 4), nn.Flatten()), images(3, 4)) is None


class Upsamples(nn.Module):
    """A map of one pixel, stretched, is still a map of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, 1, 1)
        self.stretch = nn.Upsample((5, 5), mode="bilinear")

    def forward(self, x: Tensor) -> Tensor:
        return self.stretch(F.adaptive_avg_pool2d(self.conv(x), 1)).mean((2, 3))  # type: ignore[no-any-return]


def test_a_map_that_is_the_same_everywhere_does_not_count() -> None:
    assert feature_map_names(Upsamples(), images(3, 8)) == ["conv"]


def test_looking_leaves_no_hook_and_changes_neither_mode_nor_statistics() -> None:
    network = Odd().train()
    network.norm.eval()
    before, modes = state_of(network), [module.training for module in network.modules()]
    feature_map_names(network, images(3, 8))
    last_linear(network, images(3, 8))
    assert hooks_on(network) == 0
    assert same_state(before, state_of(network))
    assert [module.training for module in network.modules()] == modes
