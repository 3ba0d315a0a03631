"""Attacks make and carry out their triggers where the images are; these tests need a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.attacks.test_badnets import some
from tests.test_conformance import shortened
from unbackdoor.attacks import ATTACKS, POISON, Online
from unbackdoor.testing.samples import sample_network
from unbackdoor.training import Runtime

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_attack_stamps_and_poisons_where_the_images_are(name: str) -> None:
    attack = shortened(ATTACKS[name]())
    train = some(120).to("cuda")
    runtime = Runtime(device="cuda", precision="fp32", threads=1)
    if isinstance(attack, Online) and attack.fixed:
        fitted = attack.poison_data(train, runtime)
    else:
        fitted = attack.prepare(train, lambda: sample_network(train.shape), runtime)
    stamped = fitted.trigger.stamp(train.images)
    assert stamped.device == fitted.train.images.device == train.images.device
    assert not torch.equal(stamped, train.images) or fitted.learns
    assert bool((fitted.kinds == POISON).any()) or fitted.hook is not None
