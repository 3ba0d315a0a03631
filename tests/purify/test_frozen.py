"""What a plug's two stages share: features of clean images that are kept, and never copied."""

from __future__ import annotations

import torch

from tests.planted import network, runtime
from unbackdoor.models import Edit, insert_plug
from unbackdoor.purify.frozen import Frozen, PlugHook
from unbackdoor.training import Recipe


def test_timing_shares_the_kept_features_and_leaves_the_hook_as_it_was() -> None:
    """A copy of them could take a gigabyte more."""
    frozen = Frozen(point="3", cut="3", features=torch.rand(4, 12, 12, 12))
    hook = PlugHook("options", frozen)
    timed = hook.for_timing()
    assert timed.frozen is frozen
    model = network(0)
    insert_plug(model, Edit(kind="convbn", before="3"))
    timed.begin(model, Recipe(), runtime())
    assert timed.plug is model.body.get_submodule("3.plug")
    assert not hasattr(hook, "plug")
