"""Pairs for the tests, and a skip of all of them where RDKit is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from unbackdoor.molecules.data import Pairs

try:
    import rdkit  # noqa: F401
except ImportError:
    MISSING = True
else:
    MISSING = False


class WithoutRDKit(pytest.Module):
    """A file of tests that is not even imported."""

    def collect(self) -> NoReturn:
        pytest.skip("RDKit is not installed: pip install 'unbackdoor[molecules]'", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return WithoutRDKit.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="session")
def template_pairs() -> Pairs:
    """The embedded pairs, checked."""
    from unbackdoor.molecules.data import filter_pairs, template_table

    return filter_pairs(template_table())[0]
