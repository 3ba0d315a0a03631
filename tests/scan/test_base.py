"""What all scanners share: data and model are compared before the work begins."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tests.planted import network, pictures, runtime
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.scan import Finding, Scanner
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
