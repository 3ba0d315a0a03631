"""What a model makes of the rows: what a plain pass gives, once for all sifters, without a trace on the model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.planted import pictures, planted, runtime
from tests.sift.spread import reader, spread
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.sift.observed import Observed, run_over
from unbackdoor.testing.samples import hooks_on, same_state, sample_images, sample_network, state_of


def test_features_logits_and_losses_are_those_of_a_plain_pass() -> None:
    model, rows = sample_network((3, 16, 16)), sample_images((3, 16, 16))
    seen = Observed(model, rows, None, runtime())
    images = rows.images.float() / 255
    with torch.no_grad():
        features = model.body[:-1](model.normalize(images))
        logits = model(images)
    torch.testing.assert_close(seen.features, features, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.logits, logits, atol=1e-5, rtol=1e-4)
    plain = torch.tensor([float(F.cross_entropy(one[None], label[None])) for one, label in zip(logits, rows.labels)])
    torch.testing.assert_close(seen.losses, plain, atol=1e-5, rtol=1e-4)


def test_the_network_runs_once_for_all_who_look() -> None:
    planted_rows = spread(torch.zeros(48))
    seen = Observed(reader(), planted_rows.rows, planted_rows.plain, runtime())
    calls: list[int] = []
    seen.model.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    for _ in range(3):
        _ = seen.features, seen.logits, seen.losses
    assert sum(calls) == len(planted_rows.rows)


def test_over_other_rows_it_says_of_them_what_it_says_of_them_alone() -> None:
    model, rows = planted(0).suspect, pictures(90, 1)
    seen = Observed(model, rows, None, runtime())
    _ = seen.features, seen.losses
    some = rows.subset(torch.arange(20, 50))
    part, alone = seen.over(some), Observed(model, some, None, runtime())
    assert torch.equal(part.features, alone.features)
    assert torch.equal(part.losses, alone.losses)
    assert part.model is seen.model
    assert len(seen.features) == 90, "the rows before are as they were"


def test_the_model_that_was_given_has_no_trace_of_it() -> None:
    model = planted(0).suspect
    before = state_of(model)
    seen = Observed(model, pictures(50, 1), pictures(20, 2), runtime())
    _ = seen.features, seen.clean_features, seen.maps(seen.rows.images[:3])
    assert hooks_on(model) == hooks_on(seen.model) == 0
    assert same_state(before, state_of(model))


def test_a_change_is_given_the_rows_that_it_changes() -> None:
    rows = pictures(1100, 3)
    model = planted(0).suspect
    seen = Observed(model, rows, None, runtime())
    parts: list[tuple[int, int]] = []

    def note(batch: torch.Tensor, part: slice) -> torch.Tensor:
        parts.append((part.start, len(batch)))
        return 1 - batch

    changed, _ = run_over(seen.model, seen.head(seen.model), rows.images, runtime(), change=note)
    assert parts == [(0, 500), (500, 500), (1000, 100)]
    inverse, _ = run_over(seen.model, seen.head(seen.model), 255 - rows.images, runtime())
    torch.testing.assert_close(changed, inverse, atol=1e-4, rtol=1e-3)


def test_the_last_map_has_its_positions_in_a_row_and_networks_without_maps_give_their_features() -> None:
    model, rows = sample_network((3, 16, 16)), sample_images((3, 16, 16))
    maps = Observed(model, rows, None, runtime()).maps(rows.images[:4])
    with torch.no_grad():
        plain = model.body[:5](model.normalize(rows.images[:4].float() / 255))
    # The pooling to 2 x 2 is the last size above one.
    assert maps.shape == (4, 8, 4)
    torch.testing.assert_close(maps, F.adaptive_avg_pool2d(plain, 2).flatten(2), atol=1e-5, rtol=1e-4)
    flat = Network(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), model.description)
    assert Observed(flat, rows, None, runtime()).maps(rows.images[:4]).shape == (4, 768, 1)


def test_a_network_without_a_linear_layer_is_refused() -> None:
    model = sample_network((3, 16, 16))
    convolutional = Network(nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten()), model.description)
    with pytest.raises(InputError, match="last linear layer, and this one has none"):
        Observed(convolutional, sample_images((3, 16, 16)), None, runtime())
