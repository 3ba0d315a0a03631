"""Each network is the published one: sizes, names, shapes, and stages whose composition is the whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unbackdoor.errors import InputError
from unbackdoor.models import NETWORKS, VGG19BN, Network, PreActResNet18, ResNet18, WRN16x1, build_network

from .files import small_description

# At the papers' width, 3 channels and 10 classes. WRN16x1 by hand: 432 (stem) + 9,344 + 32,992 + 131,520
# (groups) + 128 + 650. VGG19BN: torchvision's 143,678,248 less 990 classes of 4,097. The others as published.
PARAMETERS = {PreActResNet18: 11_171_146, ResNet18: 11_173_962, VGG19BN: 139_622_218, WRN16x1: 175_066}
LARGEST = {PreActResNet18: 64, ResNet18: 64, VGG19BN: 64, WRN16x1: 16}


def test_the_registry_has_these_networks_by_the_names_that_users_type() -> None:
    assert set(NETWORKS) == {"PreActResNet18", "ResNet18", "VGG19BN", "WRN16x1"}


@pytest.mark.parametrize("network", PARAMETERS)
def test_parameters_are_as_many_as_published(network: type[nn.Module]) -> None:
    with torch.device("meta"):
        model = network(3, 10)
        same = network(3, 10, LARGEST[network])
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[network]
    assert [p.shape for p in same.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("network", PARAMETERS)
@pytest.mark.parametrize(("channels", "classes", "width", "side"), [(3, 10, 4, 32), (1, 2, 3, 48), (4, 43, 2, 33)])
def test_logits_have_one_column_per_class_at_any_size(
    network: type[nn.Module], channels: int, classes: int, width: int, side: int
) -> None:
    logits = network(channels, classes, width).eval()(torch.rand(2, channels, side, side))
    assert logits.shape == (2, classes)
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_stages_composed_are_the_network_and_their_names_are_its_modules(name: str) -> None:
    body = NETWORKS[name](3, 5, 2).eval()
    images = torch.rand(2, 3, 32, 32)
    features = images
    for stage, module in body.stages():
        assert body.get_submodule(stage) is module
        features = module(features)
    assert torch.equal(features, body(images))
    covered = {id(parameter) for _, module in body.stages() for parameter in module.parameters()}
    assert covered == {id(parameter) for parameter in body.parameters()}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_split_at_every_stage_gives_the_whole(name: str) -> None:
    shape = (3, 32, 32)
    network = build_network(small_description(architecture=name, image_shape=shape), seed=1).eval()
    images = torch.rand(2, *shape)
    whole = network(images)
    for stage, _ in network.body.stages():
        stem, head = network.split(stage)
        assert torch.equal(head(stem(images)), whole), stage
    with pytest.raises(InputError, match="no stage"):
        network.split("nowhere")


def test_state_dicts_have_the_published_names() -> None:
    def shapes(network: type[nn.Module]) -> dict[str, tuple[int, ...]]:
        with torch.device("meta"):
            return {name: tuple(value.shape) for name, value in network(3, 10).state_dict().items()}

    preact, resnet, vgg, wide = (shapes(one) for one in (PreActResNet18, ResNet18, VGG19BN, WRN16x1))
    assert len(preact) == 102
    assert preact["layer2.0.shortcut.0.weight"] == (128, 64, 1, 1)
    assert "bn1.weight" not in preact
    assert "layer2.0.shortcut.1.weight" not in preact
    assert len(resnet) == 122
    assert resnet["layer4.0.shortcut.1.running_var"] == (512,)
    assert resnet["linear.weight"] == (10, 512)
    assert "layer1.0.shortcut.0.weight" not in resnet
    assert vgg["features.0.weight"] == (64, 3, 3, 3)
    assert vgg["features.50.running_mean"] == (512,)
    assert vgg["classifier.0.weight"] == (4096, 25088)
    assert vgg["classifier.3.weight"] == (4096, 4096)
    assert vgg["classifier.6.weight"] == (10, 4096)
    assert wide["block2.layer.0.convShortcut.weight"] == (32, 16, 1, 1)
    assert wide["bn1.weight"] == (64,)
    assert wide["fc.weight"] == (10, 64)
    assert not any(name.startswith("block1.layer.0.convShortcut") for name in wide)


def test_resnet18_activates_after_the_addition_and_the_others_before() -> None:
    images = torch.randn(2, 3, 32, 32)
    body = ResNet18(3, 4, 4).eval()
    assert bool((body.layer1(torch.relu(body.bn1(body.conv1(images)))) >= 0).all())
    preact = PreActResNet18(3, 4, 4).eval()
    assert bool((preact.layer1(preact.conv1(images)) < 0).any())
    wide = WRN16x1(3, 4, 4).eval()
    assert bool((wide.block1(wide.conv1(images)) < 0).any())


def test_the_shortcut_of_a_wide_block_sees_the_activated_input() -> None:
    block = WRN16x1(3, 4, 4).eval().block2.layer[0]
    nn.init.zeros_(block.conv2.weight)
    features = torch.randn(1, 4, 8, 8)
    activated = torch.relu(block.bn1(features))
    assert torch.allclose(block(features), block.convShortcut(activated))


def test_vgg_keeps_the_signal_from_the_first_to_the_last_feature() -> None:
    # With PyTorch's default weights the signal shrinks by orders of magnitude.
    torch.manual_seed(0)
    body = VGG19BN(3, 10, 4)
    convolutions = [module for module in body.features if isinstance(module, nn.Conv2d)]
    spread = [float(conv.weight.detach().std() * (conv.weight.shape[0] * 9 / 2) ** 0.5) for conv in convolutions]
    assert all(0.8 < value < 1.2 for value in spread)


@pytest.mark.parametrize(
    ("name", "last"), [("PreActResNet18", "layer4.1"), ("ResNet18", "layer4.1"), ("WRN16x1", "block3.layer.1")]
)
def test_the_last_block_of_residual_networks_is_the_last_stage_with_convolutions(name: str, last: str) -> None:
    assert build_network(small_description(architecture=name), seed=1).last_block() == last


def test_a_sequential_body_is_cut_at_its_members_and_one_with_a_single_convolution_is_not() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(576, 2)).eval()
    network = Network(body, small_description(image_shape=(3, 16, 16)))
    images = torch.rand(2, 3, 16, 16)
    assert network.last_block() == "2"
    stem, head = network.split("2")
    assert stem(images).shape == (2, 4, 14, 14)
    assert torch.equal(head(stem(images)), network(images))
    for other in (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 2)), nn.Bilinear(2, 2, 2)):
        with pytest.raises(InputError, match=r"cannot be cut into a stem and a head: it tells [01] stages"):
            Network(other, small_description(image_shape=(3, 16, 16))).last_block()
