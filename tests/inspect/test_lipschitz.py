"""Bounds of channels and their changes by the trigger, against slow references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.inspect.known import described, material, random_images
from tests.planted import planted, runtime
from unbackdoor.errors import InputError, UnsuitedError
from unbackdoor.inspect import Figure, Lipschitz
from unbackdoor.inspect.agreement import correlations
from unbackdoor.inspect.compared import pairs_of
from unbackdoor.inspect.lipschitz import bounded_layers, trigger_changes
from unbackdoor.models import tapped
from unbackdoor.testing.samples import hooks_on


def test_bounds_are_singular_values_times_the_slope_of_the_normalisation() -> None:
    suspect = planted(1).suspect
    found = Lipschitz().inspect(suspect, material(attack=None, reference=None), runtime())
    told = found.details["suspect_bounds"]
    assert list(told) == ["1", "4", "7"]
    for number in (1, 4, 7):
        convolution, norm = suspect.body[number - 1], suspect.body[number]
        for channel, bound in enumerate(told[str(number)]):
            largest = torch.linalg.svdvals(convolution.weight[channel].flatten(1).double())[0]
            slope = norm.weight[channel].abs().double() / (norm.running_var[channel].double() + norm.eps).sqrt()
            assert bound == pytest.approx(float((largest * slope).detach()), rel=1e-5)


def test_changes_are_those_of_the_maps_image_by_image() -> None:
    suspect = planted(1).suspect
    pairs = pairs_of(material().clean, planted(1).fitted)
    layers = {name: norm for name, (norm, _) in bounded_layers(suspect, runtime()).items()}
    found = trigger_changes(suspect, layers, pairs, runtime())
    assert hooks_on(suspect) == 0
    expected = {name: torch.zeros(len(values)) for name, values in found.items()}
    for images in zip(pairs.originals.images, pairs.triggered.images, strict=True):
        maps = []
        for image in images:
            with torch.no_grad(), tapped(suspect, "1", "4", "7") as outputs:
                suspect(image[None].float() / 255)
            maps.append(dict(outputs))
        for name in ("1", "4", "7"):
            expected[name] += (maps[1][name] - maps[0][name])[0].flatten(1).norm(dim=1)
    for name, total in expected.items():
        torch.testing.assert_close(found[name].float(), total / len(pairs.wanted), rtol=1e-3, atol=1e-5)


def test_channels_stand_out_by_standard_deviations_of_their_layer() -> None:
    found = Lipschitz(u=1.0).inspect(planted(1).suspect, material(attack=None, reference=None), runtime())
    for layer, channels in found.measured["suspect"]["outstanding"].items():
        bounds = torch.tensor(found.details["suspect_bounds"][layer])
        limit = float(bounds.mean() + bounds.std())
        assert channels == [number for number, bound in enumerate(bounds.tolist()) if bound > limit]
        assert 0 < len(channels) < len(bounds) / 2


def test_with_an_attack_bounds_and_changes_are_correlated_layer_by_layer() -> None:
    found = Lipschitz().inspect(planted(1).suspect, material(), runtime())
    suspect = found.measured["suspect"]
    for layer, told in suspect["spearman"].items():
        one, other = (torch.tensor(found.details[f"suspect_{kind}"][layer]) for kind in ("bounds", "changes"))
        assert told == pytest.approx(correlations(one, other)[1])
    assert suspect["median_spearman"] == sorted(suspect["spearman"].values())[1]
    kinds = [(figure.marks, figure.log_x) for figure in found.figures if isinstance(figure, Figure)]
    assert kinds == [("points", True)] * 2 + [("lines", False)] * 2
    total = {name: sum(map(sum, found.details[f"{name}_changes"].values())) for name in ("suspect", "reference")}
    assert total["suspect"] > total["reference"], "the trigger moves the suspect's channels more"


def test_a_layer_of_one_channel_has_no_outstanding_one() -> None:
    body = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 3))
    given = material(clean=random_images((1, 4, 4), 9, 3), attack=None, reference=None)
    found = Lipschitz().inspect(described(body, (1, 4, 4), 3), given, runtime())
    assert found.measured["suspect"]["outstanding"] == {"1": []}
    assert math.isfinite(found.measured["suspect"]["largest"]["1"])


@pytest.mark.parametrize(
    "layers", [[nn.Conv2d(1, 2, 3)], [nn.BatchNorm2d(1)], [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False)]]
)
def test_a_network_without_bounds_is_said(layers: list[nn.Module]) -> None:
    with torch.no_grad():
        size = nn.Sequential(*layers, nn.Flatten())(torch.zeros(2, 1, 4, 4)).shape[1]
    network = described(nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, 3)), (1, 4, 4), 3)
    given = material(clean=random_images((1, 4, 4), 9, 3), attack=None, reference=None)
    with pytest.raises(UnsuitedError, match="after a convolution, and this network has none"):
        Lipschitz().inspect(network, given, runtime())


@pytest.mark.parametrize("options", [{"u": -1.0}, {"u": math.nan}, {"images": 0}])
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^Lipschitz: .* found "):
        Lipschitz(**options)
