"""What all scanners share: data and model are compared before the work begins."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch

from tests.planted import CLASSES, network, pictures, planted, runtime
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.scan import Finding, Scanner, UniversalPerturbations
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class Untouched(Scanner):
    """A scanner whose work must not begin."""

    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        pytest.fail("the work has begun")


@pytest.mark.parametrize("field", ["clean", "untrusted"])
def test_data_that_do_not_fit_the_model_are_refused_before_the_work(field: str) -> None:
    good = pictures(20, 0)
    data = DefenderData(**{"clean": good, field: replace(good, images=good.images[..., :11], name="narrow")})
    with pytest.raises(InputError, match="narrow has images of 3 x 12 x 11"):
        Untouched().scan(network(0), data, runtime())


def test_a_model_without_numbers_is_refused_and_a_scan_without_is_inconclusive() -> None:
    """What is no number is above no threshold: it must not read as "no evidence found"."""
    model, data = planted(1).twin, DefenderData(clean=pictures(16, 5))
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(broken.parameters())).fill_(float("nan"))
    with pytest.raises(InputError, match="outputs for clean images are NaN or infinite"):
        UniversalPerturbations().scan(broken, data, runtime())

    class Lost(Scanner):
        def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
            anomaly = torch.full((CLASSES,), float("nan"))
            return Finding(backdoored=False, suspected=(), calibrated=True, anomaly=anomaly, threshold=1.0)

    found = Lost().scan(model, data, runtime())
    assert found.backdoored is None
    assert "NaN" in found.reason
