"""Taps give what the modules named put out, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unbackdoor.errors import InputError
from unbackdoor.models import build_network, tapped

from .files import small_description, small_network


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_taps_give_the_outputs_of_the_modules_named_and_change_nothing() -> None:
    network = small_network().eval()
    images = torch.rand(3, 3, 16, 16)
    plain = network(images)
    with tapped(network, "conv1", "block3.layer.1", "fc") as features:
        assert features == {}
        logits = network(images)
        assert set(features) == {"conv1", "block3.layer.1", "fc"}
    assert torch.equal(logits, plain)
    stem, _ = network.split("bn1")
    assert torch.equal(features["block3.layer.1"], stem(images))
    assert torch.equal(features["conv1"], network.body.conv1(network.normalize(images)))
    assert torch.equal(features["fc"], logits)


def test_each_forward_pass_replaces_the_last() -> None:
    network = small_network().eval()
    with tapped(network, "fc") as features:
        network(torch.rand(2, 3, 16, 16))
        first = features["fc"]
        network(torch.rand(5, 3, 16, 16))
        assert features["fc"].shape[0] == 5
    assert first.shape[0] == 2


def test_taps_keep_the_gradient() -> None:
    network = small_network()
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    with tapped(network, "block1") as features:
        network(images)
    features["block1"].sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0


def test_no_hook_stays_after_the_block_or_an_exception_in_it() -> None:
    network = small_network()
    with tapped(network, "block1", "fc"):
        assert hooks(network) == 2
    assert hooks(network) == 0
    with pytest.raises(RuntimeError, match="stop"), tapped(network, "block1", "fc"):
        raise RuntimeError("stop")
    assert hooks(network) == 0
    with pytest.raises(RuntimeError), tapped(network, "block1"):
        network(torch.rand(2, 7, 16, 16))
    assert hooks(network) == 0


def test_an_unknown_name_is_answered_with_the_likely_one_and_leaves_no_hook() -> None:
    network = small_network()
    with (
        pytest.raises(InputError, match=r"no module 'block4'; did you mean 'block\d'"),
        tapped(network, "fc", "block4"),
    ):
        pass
    with pytest.raises(InputError, match="no module ''"), tapped(network, ""):
        pass
    assert hooks(network) == 0


def test_a_plain_module_is_tapped_by_its_own_names_and_tuples_by_their_first_value() -> None:
    class Two(nn.Module):
        def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, str]:
            return values + 1, "second"

    model = nn.Sequential(nn.Identity(), Two())
    with tapped(model, "1") as features:
        model(torch.zeros(3))
    assert torch.equal(features["1"], torch.ones(3))


def test_a_group_of_blocks_is_tapped_by_the_name_of_the_group() -> None:
    network = build_network(small_description(architecture="PreActResNet18"), seed=0).eval()
    images = torch.rand(2, 3, 16, 16)
    with tapped(network, "layer4") as features:
        network(images)
    stem, _ = network.split("avgpool")
    assert torch.equal(features["layer4"], stem(images))
