"""Cells on untrusted training data: the attack that poisons them, a quick model of them, sifters, secure trainers.

The attack is made ready once for all of them, and the quick model learned once for all sifters that would each learn
the very same. A method is given the rows alone; which of them are poisoned is looked up after it has answered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbackdoor.attacks import Attack, FittedAttack, Online, SavedAttack, load_attack, save_attack
from unbackdoor.attacks.base import COVER, POISON
from unbackdoor.attacks.saved import MOST_BYTES
from unbackdoor.bench.cell import Cell, Result
from unbackdoor.bench.pages import facts, poison_page, quick_page, sift_page, trained_page, written_page
from unbackdoor.bench.poisoned import kept_rows, untrusted_data
from unbackdoor.bench.victims import Given, Trained, Victim, check_attack, shares, times
from unbackdoor.bench.worker import details_of, measured
from unbackdoor.data import DefenderData, ImageSet, clean_rows
from unbackdoor.detection import detection
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.files import read_bytes, sha256, write_bytes
from unbackdoor.folder import ATTACK, MODEL, PAGE, RESUME, WORK
from unbackdoor.models import load_model, save_model
from unbackdoor.models.mark import repaired_mark
from unbackdoor.options import options_of
from unbackdoor.reconstruction import Mean, reconstruction
from unbackdoor.secure import Decoder, SecureTrainer
from unbackdoor.secure.saved import save_part
from unbackdoor.sift import Sifter, quick_model
from unbackdoor.sift.base import LEARNING
from unbackdoor.sift.quick_model import RECIPE
from unbackdoor.training import Runtime, new_network, stage
from unbackdoor.training.resume import states


@dataclass(frozen=True, kw_only=True)
class Defence:
    """What is done with untrusted data.

    Attributes:
        setting: whose attack poisoned them.
        method: None: the quick model is learned.
        network: that is trained, if one is.
        clean_size: clean samples, if the method needs any.
        budget: minutes, or None.
    """

    setting: Victim
    method: Sifter | SecureTrainer | None = None
    network: partial[nn.Module] | None = None
    clean_size: int | None = None
    budget: float | None = None

    def runtime(self, given: Runtime) -> Runtime:
        """Return a runtime with the setting's seed and precision, and the budget."""
        return replace(self.setting.runtime(given), budget=self.budget)


def uses_quick_model(sifter: Sifter) -> bool:
    """Return whether a sifter learns the quick model, and not one of its own."""
    return type(sifter).learn is Sifter.learn


def poison_data(cell: Cell, setting: Victim, folder: Path, runtime: Runtime) -> Result:
    """Poison the training data of a setting and keep what tells them from the clean ones.

    Args:
        cell: with the hashes of files that were seen when the grid was read.
        setting: which attack, and from what.
        folder: for the files and for the state of an interrupted preparation.
        runtime: device, seed, precision.
    """
    files: dict[str, Path] = {}
    made: FittedAttack | SavedAttack | None = None
    cost: dict[str, float] = {}
    train, test = setting.data()
    match setting:
        case Trained(attack=Attack() as attack):
            check_attack(attack, cell)
            work = folder / WORK
            resumed = work.exists()
            with measured() as clock:
                made = fitted = _prepared(attack, setting, train, runtime, work)
            cost = times(clock, resumed)
            save_attack(folder / ATTACK, fitted, options_of(attack))
            files = {ATTACK: folder / ATTACK, **kept_rows(fitted, train, folder)}
        case Given(model=named) if named.attack:
            content = read_bytes(named.attack, MOST_BYTES)
            if sha256(content) != named.attack_sha256:
                raise InputError(f"{named.attack} is another file here than when the grid was read")
            write_bytes(folder / ATTACK, content)
            files, made = {ATTACK: folder / ATTACK}, load_attack(folder / ATTACK)
    counts = {
        name: 0.0 if made is None else float((made.kinds == kind).sum())
        for name, kind in (("poisoned_rows", POISON), ("covers", COVER))
    }
    page = partial(poison_page, cell.title, test, made, counts, facts(runtime, recipe=cell.recipe))
    return Result(metrics={**counts, **cost}, files={**files, **written_page(folder / PAGE, page)})


def _prepared(attack: Attack, setting: Trained, train: ImageSet, runtime: Runtime, work: Path) -> FittedAttack:
    if isinstance(attack, Online):
        return attack.poison_data(train, runtime)
    return attack.prepare(train, partial(new_network, setting.network, train, runtime), runtime, work)


def learn_quickly(cell: Cell, task: Defence, given: Path, folder: Path, runtime: Runtime) -> Result:
    """Learn the quick model of poisoned data, as `Sifter.score` would.

    Args:
        cell: for the record.
        task: which data.
        given: files of the attack.
        folder: for the model and for the state of an interrupted training.
        runtime: device, seed, precision, budget.
    """
    rows, attack = untrusted_data(task.setting.data()[0], given)
    resume = folder / RESUME
    resumed = bool(states(resume))
    with measured() as clock:
        model = quick_model(rows.in_canonical_order(), runtime.part(LEARNING), resume=stage(resume, "quick"))
    save_model(folder / MODEL, model, provenance={"bench cell": cell.key}, backdoored=_mark(attack))
    cost = times(clock, resumed)
    files = {MODEL: folder / MODEL, **{path.name: path for path in given.iterdir() if path.suffix == ".safetensors"}}
    told = facts(runtime, inputs={"untrusted data": rows.digest()}, training=options_of(RECIPE), cost=cost)
    page = written_page(folder / PAGE, partial(quick_page, cell.title, told))
    return Result(metrics=cost, details={"cost": cost}, files={**files, **page})


def sift_data(cell: Cell, task: Defence, given: Path, folder: Path, runtime: Runtime) -> Result:
    """Sift poisoned data, then compare what was said of the rows with what they are.

    Args:
        cell: for its title.
        task: how.
        given: files of the attack, and the quick model if the sifter uses it.
        folder: for the page and for the state of an interrupted training.
        runtime: device, seed, precision, budget.

    Returns:
        What `Detection.to_metrics` says. The seconds are those of a sifter that is given no model: with learning the
        quick model, of which `learning_seconds` says how much that was.
    """
    assert isinstance(task.method, Sifter)
    rows, attack = untrusted_data(task.setting.data()[0], given)
    shared = (given / MODEL).exists()
    model = load_model(given / MODEL).network if shared else None
    learned: dict[str, float] = details_of(given)["cost"] if shared else {}
    resume = folder / RESUME
    resumed = bool(states(resume)) or "resumed" in learned
    with measured() as clock:
        left = runtime.part(1 - LEARNING) if shared else runtime
        found = task.method.score(DefenderData(untrusted=rows), left, model, resume)
    # From here on nothing reaches the method.
    measures = detection(found, attack.kinds if attack else None)
    clock.add(learned)
    metrics = {**measures.to_metrics(), **times(clock, resumed)}
    if shared and not resumed:
        metrics["learning_seconds"] = learned["seconds"]
    told = facts(runtime, options=options_of(task.method), inputs={"untrusted data": rows.digest()})
    page = partial(sift_page, cell.title, task.method, found, rows, measures, told)
    return Result(metrics=metrics, details={"suspicion": found.to_json()}, files=written_page(folder / PAGE, page))


def train_securely(cell: Cell, task: Defence, given: Path, folder: Path, runtime: Runtime) -> Result:
    """Train on poisoned data by a method that is to keep the backdoor out, then measure the model.

    Clean samples, of a method that needs them, are held out: they are not among the untrusted data.

    Args:
        cell: for its title.
        task: how.
        given: files of the attack.
        folder: for files and for the state of an interrupted training.
        runtime: device, seed, precision, budget.
    """
    assert isinstance(task.method, SecureTrainer)
    assert task.network is not None
    train, test = task.setting.data()
    untrusted, attack = untrusted_data(train, given)
    clean = None
    if task.clean_size is not None:
        held = clean_rows(train, task.clean_size, runtime.seed)
        others = torch.ones(len(train), dtype=torch.bool).index_fill(0, held, False).nonzero().squeeze(1)
        if not len(others):
            raise InputError(f"{train.name}: all {len(train)} images are clean samples, and none is left to train on")
        clean, untrusted = train.subset(held), untrusted.subset(others)
    resume = folder / RESUME
    resumed = bool(states(resume))
    with measured() as clock:
        build = partial(new_network, task.network, untrusted, runtime)
        trained = task.method.train(build, DefenderData(untrusted=untrusted, clean=clean), runtime, resume)
    # From here on nothing reaches the method.
    known = (attack.trigger, attack.criterion) if attack else (None, None)
    evaluation = evaluate(trained.network, test, runtime, *known)
    metrics = {**shares(evaluation), "rounds": trained.history.epochs, **times(clock, resumed)}
    decoder = trained.parts.get("decoder")
    rebuilt = reconstruction(trained.network, decoder, test, runtime, *known) if isinstance(decoder, Decoder) else None
    if rebuilt:
        metrics |= {**_error("mse_clean", rebuilt.clean), **_error("mse_triggered", rebuilt.triggered)}
    made_by: dict[str, Any] = {
        "method": options_of(task.method),
        "seed": runtime.seed,
        "untrusted data": untrusted.digest(),
        **({"clean samples": clean.digest()} if clean else {}),
    }
    save_model(folder / MODEL, trained.network, provenance=made_by, backdoored=repaired_mark(_mark(attack)))
    files = {MODEL: folder / MODEL}
    for name, part in trained.parts.items():
        files[f"{name}.safetensors"] = folder / f"{name}.safetensors"
        save_part(files[f"{name}.safetensors"], name, part, made_by)
    told = facts(runtime, options=options_of(task.method), inputs=made_by)
    page = written_page(folder / PAGE, partial(trained_page, cell.title, evaluation, trained.history, rebuilt, told))
    details = {
        "evaluation": evaluation.to_json(),
        **({"reconstruction": rebuilt.to_json()} if rebuilt else {}),
        "loss": trained.history.loss,
        "notes": list(trained.history.notes),
    }
    return Result(metrics=metrics, details=details, files={**files, **page}, optional=frozenset(files))


DEFENCES = {"quick": learn_quickly, "sift": sift_data, "secure": train_securely}
"""What is done with poisoned data, by the kind of the cell."""


def _error(name: str, mean: Mean | None) -> dict[str, float]:
    return {} if mean is None else {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}


def _mark(attack: SavedAttack | None) -> dict[str, Any] | None:
    """Return what a model's file says of an attack on its training data."""
    return {"attack": attack.options, "criterion": attack.criterion.to_json()} if attack else None
