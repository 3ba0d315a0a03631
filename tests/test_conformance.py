"""Every registered method passes the public checks, and broken methods do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unbackdoor.attacks import ATTACKS, SIG, Attack, BadNets, FittedAttack
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import OracleError
from unbackdoor.models import Network
from unbackdoor.purify import FT, PURIFIERS, Purifier
from unbackdoor.scan import SCANNERS, Finding, Scanner
from unbackdoor.testing import check_attack, check_purifier, check_scanner
from unbackdoor.training import History, Runtime

SHORT = {"epochs": 1, "rounds": 1, "steps": 2, "batch_size": 16}


def shortened(method: Any) -> Any:
    fields = {name: value for name, value in SHORT.items() if hasattr(method, name)}
    return replace(method, **fields)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_conforms(name: str) -> None:
    check_attack(ATTACKS[name]())


@pytest.mark.parametrize("name", PURIFIERS)
def test_every_purifier_conforms(name: str) -> None:
    check_purifier(shortened(PURIFIERS[name]()))


@pytest.mark.parametrize("name", SCANNERS)
def test_every_scanner_conforms(name: str) -> None:
    check_scanner(shortened(SCANNERS[name]()))


@dataclass(frozen=True, kw_only=True)
class Changes(BadNets):
    def prepare(self, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime) -> FittedAttack:
        train.images[0] = 7
        return super().prepare(train, build_model, runtime)


@dataclass(frozen=True, kw_only=True)
class Unseeded(BadNets):
    def prepare(self, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime) -> FittedAttack:
        seed = int(torch.randint(2**31, (1,)))
        return super().prepare(train, build_model, replace(runtime, seed=seed))


@pytest.mark.parametrize("attack", [Changes(), Unseeded()])
def test_a_broken_attack_is_caught(attack: Attack) -> None:
    with pytest.raises(AssertionError):
        check_attack(attack)


def test_a_clean_label_attack_of_too_high_a_rate_is_refused_everywhere() -> None:
    with pytest.raises(AssertionError, match="supports none"):
        check_attack(SIG(poison_rate=0.9))


@dataclass(frozen=True, kw_only=True)
class ReturnsItsInput(Purifier):
    def purify(
        self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None = None
    ) -> tuple[Network, History]:
        return model, History(epochs=1)

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        raise AssertionError("not called")


@dataclass(frozen=True, kw_only=True)
class LeavesAHook(FT):
    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        model.body.register_forward_hook(lambda *_: None)
        return History(epochs=1)


@dataclass(frozen=True, kw_only=True)
class IsRandom(FT):
    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        torch.seed()
        with torch.no_grad():
            next(model.parameters()).add_(torch.randn(()))
        return History(epochs=1)


@pytest.mark.parametrize("purifier", [ReturnsItsInput(), LeavesAHook(), IsRandom()])
def test_a_broken_purifier_is_caught(purifier: Purifier) -> None:
    with pytest.raises(AssertionError):
        check_purifier(purifier)


@dataclass(frozen=True, kw_only=True)
class Cheats(FT):
    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        return data.trigger  # type: ignore[attr-defined, no-any-return]


def test_the_canary_sings() -> None:
    with pytest.raises(OracleError, match="trigger"):
        check_purifier(Cheats())


@dataclass(frozen=True, kw_only=True)
class DependsOnOrder(Scanner):
    def scan(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        return self.inspect(model, data, runtime)

    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        clean = data.need_clean("test")
        anomaly = clean.images[: clean.classes].float().mean((1, 2, 3))
        return Finding(backdoored=False, suspected=(), calibrated=False, anomaly=anomaly, threshold=2.0)


def test_a_scanner_that_depends_on_order_is_caught() -> None:
    with pytest.raises(AssertionError, match="order"):
        check_scanner(DependsOnOrder())
