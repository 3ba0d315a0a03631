"""Networks come from registered names or the user's own code, by seed, never from half-right names."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.errors import InputError
from unbackdoor.models import Network, build_network

from .files import small_description


def state(network: Network) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.body.state_dict().values()])


def test_the_seed_alone_decides_the_weights_and_the_global_state_stays() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_network(small_description(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(state(build_network(small_description(), seed=1)), state(first))
    assert not torch.equal(state(build_network(small_description(), seed=2)), state(first))


def test_the_seed_of_a_network_leaves_the_accelerators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[object] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    build_network(small_description(), seed=1)
    assert seeded == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": ("a", "b" * 257)}, "the class names must be texts of at most 256"),
        ({"class_names": ("a",) * 65_537}, "a list of 1 to 65536"),
        ({"class_names": ("\U0001f6a2" * 256,) * 400}, "longer than 1048576 characters"),
        ({"image_shape": (3, 16, 1025)}, "1024 pixels a side"),
        ({"mean": (0.5,)}, "one per channel"),
    ],
)
def test_a_network_whose_file_would_be_refused_is_not_built(changes: dict[str, object], words: str) -> None:
    """Training would run to its end for nothing."""
    with pytest.raises(InputError, match=words):
        build_network(small_description(**changes), seed=1)


def test_without_a_seed_the_global_state_decides() -> None:
    torch.manual_seed(5)
    first = build_network(small_description())
    second = build_network(small_description())
    torch.manual_seed(5)
    assert torch.equal(state(build_network(small_description())), state(first))
    assert not torch.equal(state(second), state(first))


def test_the_description_decides_channels_classes_width_and_normalisation() -> None:
    network = build_network(
        small_description(image_shape=(1, 16, 16), mean=(0.5,), std=(0.25,), class_names=("x", "y"))
    )
    assert network.body.conv1.weight.shape == (2, 1, 3, 3)
    assert network.body.fc.weight.shape == (2, 8)
    images = torch.rand(2, 1, 16, 16)
    assert torch.allclose(network.eval()(images), network.body((images - 0.5) / 0.25))


def test_a_users_function_gets_channels_classes_and_arguments(user_module: str) -> None:
    network = build_network(small_description(architecture=f"{user_module}:tiny", arguments={"hidden": 5}))
    assert network.body[0].weight.shape == (5, 3, 1, 1)
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("architecture", "arguments", "words"),
    [
        ("PreActResnet18", {}, "did you mean PreActResNet18"),
        ("Transformer9000", {}, "known: PreActResNet18, ResNet18, VGG19BN, WRN16x1"),
        ("WRN16x1", {"widht": 2}, r"no argument 'widht' \(known: width\)"),
        ("WRN16x1", {"channels": 2}, "no argument 'channels'"),
        ("WRN16x1", {"width": 0}, "from 1 to 4096"),
        ("WRN16x1", {"width": 2.0}, "from 1 to 4096"),
        ("WRN16x1", {"width": True}, "from 1 to 4096"),
        ("user_networks:small", {}, "has no function 'small'"),
        ("user_networks:number", {}, "has no function 'number'"),
        ("user_networks:nothing", {}, "must return a torch.nn.Module"),
        ("user_networks:picky", {}, "these images are not for me"),
        ("user_networks:tiny", {"depth": 3}, "no argument 'depth'"),
        ("user_networkz:tiny", {}, "cannot import 'user_networkz'"),
        ("user_networks:tiny:x", {}, "is no architecture"),
        (":tiny", {}, "is no architecture"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(
    user_module: str, architecture: str, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        build_network(small_description(architecture=architecture, arguments=arguments))
