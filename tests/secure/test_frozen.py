"""A network of which only the head learns."""

from __future__ import annotations

import torch

from tests.planted import network, pictures
from unbackdoor.secure.frozen import FrozenStem
from unbackdoor.testing.samples import same_state, state_of


def test_the_stem_is_frozen_in_mode_and_weights_while_the_head_learns() -> None:
    model = network(1)
    replaced = FrozenStem(model, "6", 0.5).train()
    assert not any(module.training for module in replaced.stem.modules())
    assert all(module.training for module in replaced.head.modules())
    before = state_of(replaced.stem)
    replaced(pictures(16, 0).images.float() / 255).sum().backward()
    assert all(value.grad is None for value in replaced.stem.parameters())
    assert all(value.grad is not None for value in replaced.head.parameters())
    assert same_state(before, state_of(replaced.stem)), "running statistics too"


def test_dropout_acts_before_the_last_layer_and_is_not_in_the_result() -> None:
    replaced = FrozenStem(network(1), "6", 0.5)
    kinds = [type(layer).__name__ for layer in replaced.head]
    assert kinds[-2:] == ["Dropout", "Linear"]
    images = pictures(8, 0).images.float() / 255
    torch.testing.assert_close(replaced.eval()(images), network(1).eval()(images))
