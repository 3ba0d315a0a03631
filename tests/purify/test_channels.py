"""Channels of batch normalisation are found, switched off, and paired with the convolutions that feed them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planted import network, runtime
from unbackdoor.errors import InputError
from unbackdoor.models import Description, Network, build_network
from unbackdoor.purify.channels import norm_layers, switch_off
from unbackdoor.scan.lipschitz import convolutions_before
from unbackdoor.testing.samples import hooks_on


def described(body: nn.Module, shape: tuple[int, int, int] = (3, 12, 12)) -> Network:
    """Return the body behind a normalisation that changes nothing."""
    description = Description(
        architecture="described",
        arguments={},
        class_names=("a", "b"),
        image_shape=shape,
        mean=(0.0,) * shape[0],
        std=(1.0,) * shape[0],
    )
    return Network(body, description).eval()


def built(architecture: str) -> Network:
    description = Description(
        architecture=architecture,
        arguments={"width": 4},
        class_names=("a", "b"),
        image_shape=(3, 32, 32),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    return build_network(description, seed=0)


def pairs(model: Network) -> dict[str, set[str]]:
    """Return the names of the convolutions before each layer, without the body's own."""
    names = {module: name.removeprefix("body.") for name, module in model.named_modules()}
    found = convolutions_before(model, norm_layers(model, "Test"), runtime())
    assert hooks_on(model) == 0
    return {name.removeprefix("body."): {names[one] for one in convolutions} for name, convolutions in found.items()}


def test_in_a_sequence_each_layer_has_the_convolution_before_it() -> None:
    assert pairs(network(0)) == {"1": {"0"}, "4": {"3"}, "7": {"6"}}


def test_in_a_pre_activation_network_the_whole_residual_stream_is_followed_back() -> None:
    """The order of modules pairs layer2.1.bn1 with the shortcut of layer2.0 alone."""
    found = pairs(built("PreActResNet18"))
    assert len(found) == 16
    assert found["layer1.0.bn1"] == {"conv1"}
    assert found["layer1.0.bn2"] == {"layer1.0.conv1"}
    assert found["layer1.1.bn1"] == {"conv1", "layer1.0.conv2"}
    assert found["layer2.0.bn1"] == {"conv1", "layer1.0.conv2", "layer1.1.conv2"}
    assert found["layer2.1.bn1"] == {"layer2.0.conv2", "layer2.0.shortcut.0"}
    assert found["layer2.1.bn2"] == {"layer2.1.conv1"}


def test_in_a_resnet_each_normalisation_has_its_own_convolution() -> None:
    assert all(len(convolutions) == 1 for convolutions in pairs(built("ResNet18")).values())


class Odd(nn.Module):
    """Runs its modules in another order than it declares them in, with operations between some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.after_relu = nn.BatchNorm2d(4)
        self.after_both = nn.BatchNorm2d(8)
        self.unused = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout()

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm1(self.drop(self.first(images)))
        one = self.second(features)
        two = self.norm2(one)
        # In place: the very tensor that the convolution put out is another thing now.
        three = self.after_relu(self.relu(self.first(images)))
        return self.after_both(torch.cat([two, three], 1)).mean((2, 3))[:, :2]  # type: ignore[no-any-return]


def test_what_is_run_counts_and_not_the_order_of_attributes() -> None:
    assert pairs(described(Odd())) == {"norm1": {"first"}, "norm2": {"second"}}


def test_frozen_weights_are_paired_too() -> None:
    model = network(0).requires_grad_(False)
    assert pairs(model) == {"1": {"0"}, "4": {"3"}, "7": {"6"}}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_shared_convolution_is_named_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> Tensor:
            features = self.convolution(images) + self.convolution(images.flip(3))
            return F.relu(self.norm(features)).mean((2, 3))

    model = described(Twice())
    found = convolutions_before(model, norm_layers(model, "Test"), runtime())
    assert [len(convolutions) for convolutions in found.values()] == [1]


def test_layers_without_weights_or_statistics_are_left_out() -> None:
    body = nn.Sequential(
        nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3)
    )
    assert list(norm_layers(body, "Test")) == ["1", "2"]
    assert list(norm_layers(body, "Test", statistics=True)) == ["2"]
    with pytest.raises(InputError, match="Test prunes channels of batch normalization, and this network has none"):
        norm_layers(body[0], "Test")
    with pytest.raises(InputError, match="with running statistics"):
        norm_layers(body[1], "Test", statistics=True)


@pytest.mark.parametrize("bias", [True, False])
def test_switching_off_sets_weights_to_zero_and_biases_only_if_asked(bias: bool) -> None:
    layer = nn.BatchNorm2d(3)
    nn.init.constant_(layer.bias, 2.0)
    switch_off(layer, torch.tensor([True, False, True]), bias)
    assert layer.weight.tolist() == [0.0, 1.0, 0.0]
    assert layer.bias.tolist() == ([0.0, 2.0, 0.0] if bias else [2.0] * 3)
