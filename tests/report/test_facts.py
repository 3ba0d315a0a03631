from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

from unbackdoor import __version__
from unbackdoor.report import Fact, option_facts, version_facts


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method with two options."""

    epochs: int = 3
    rate: float = 0.01


def test_every_option_is_listed_with_the_value_that_it_ran_with() -> None:
    assert option_facts(Method(epochs=7)) == [Fact(name="epochs", value="7"), Fact(name="rate", value="0.01")]


def test_versions_are_those_that_run() -> None:
    facts = {fact.name: fact.value for fact in version_facts()}
    assert facts["Python"] == platform.python_version()
    assert facts["torch"] == torch.__version__
    assert facts["unbackdoor"] == __version__
    assert facts["Threads"] == str(torch.get_num_threads())
