"""A zoo: many small models, clean and backdoored, by which scanners are calibrated and judged.

Everything that decides a model is its data, its network, its attack and its seed, and the recipe that the whole zoo
has. So is the part that a model plays, see `Entry.part`: which attacks and which seeds are held out follows from
their names and numbers, and nobody can choose it after looking.

Of the training images, some are kept back from each model: a user's clean images are taken to be new to the suspect
model, and those by which scanners are calibrated have to be new to theirs as well.

Models are trained one by one, each by one process: as one stacked problem (`torch.func.vmap`) several take longer on a
processor, see `benchmarks/zoo_speed.py`. Several processes may work on one zoo, and share it by locks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

from unbackdoor.attacks import ATTACKS, AllToOne, Attack, Criterion, FittedAttack, Poisoning, SourceSpecific, TaCT
from unbackdoor.data import ImageSet, draw_clean, hold_out
from unbackdoor.errors import DivergedError, InputError, ResumeError
from unbackdoor.evaluate import evaluate
from unbackdoor.files import unlock, write_bytes
from unbackdoor.folder import RESUME
from unbackdoor.models import Network, PreActResNet18, WRN16x1, save_model
from unbackdoor.options import options_of
from unbackdoor.training import Recipe, Runtime, Silent, architecture_of, fit, network_options, new_network

NETWORKS: tuple[partial[Any], ...] = (partial(PreActResNet18, width=8), partial(WRN16x1, width=16))
"""Taken in turn, where none is named."""
QUICK = Recipe(epochs=10, batch_size=64, low_resolution=0.0)
"""Of a victim that has to know the classes, not to be the best; at full resolution, where a small patch stays whole."""
LEAST_SUCCESS = 0.5
"""Of an attack, on test images; where it is less, no backdoor came of it: neither clean nor backdoored."""
LEAST_RATE = 0.02
"""Of poison, and of covers where there are any: a rate of 0.3 % of few images is a handful."""
MOST_OF_A_CLASS = 0.6
"""Share of the target's images that an attack may poison which leaves labels as they are."""
KEPT, MOST_KEPT = 250, 0.25
"""Images that a model is not trained on, for its scans, and their largest share of all training images."""
MOST_TESTED = 1000
"""Test images by which a model is measured: whether an attack worked is seen on fewer than all."""
INDEX, MODELS, WORK = "index.jsonl", "models", "work"
"""Names in a zoo's folder."""

NEEDED = frozenset({"key", "data", "network", "attack", "seed", "made"})
"""What every row of an index has."""

BACKDOORED = 1 << 20
"""From here on seeds are those of backdoored models; even, so that a seed's parity is that of its round."""

Part = Literal["reference", "development", "held-out"]
"""What a model is for: to be compared with (clean ones), to be looked at while detectors are made (backdoored ones), or
to judge the verdict (of both kinds)."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model of a zoo.

    Attributes:
        data: name of the data set.
        network: name of the network.
        attack: name of the attack; None: trained on clean data.
        seed: of everything that is drawn.
    """

    data: str
    network: str
    attack: str | None
    seed: int

    @property
    def key(self) -> str:
        """What tells it from the others; the name of its file."""
        # A network of the user's is module:function, which some file systems do not take.
        return "-".join([self.data, self.network.replace(":", "."), self.attack or "None", str(self.seed)])

    @property
    def part(self) -> Part | None:
        """What it is for; None: nothing, as attacks that are held out do not meet seeds that are not."""
        held_seed = self.seed % 2 == 1
        if self.attack is None:
            return "held-out" if held_seed else "reference"
        if is_held_out(self.attack) != held_seed:
            return None
        return "held-out" if held_seed else "development"


def entry_of(row: Mapping[str, Any]) -> Entry:
    """Return the entry that a row of a zoo's index is of."""
    return Entry(data=row["data"], network=row["network"], attack=row["attack"], seed=row["seed"])


def is_held_out(attack: str) -> bool:
    """Return whether verdicts are judged by this attack, and not made with it: by its name's hash, half of them are."""
    return hashlib.sha256(attack.encode()).digest()[0] % 2 == 0


def plan(data: str, attacks: Sequence[str], rounds: int, networks: Sequence[partial[Any]] = NETWORKS) -> list[Entry]:
    """Return the models of a zoo; the first of them are a smaller zoo of the same kind.

    A round has a model of each attack, and as many clean ones; rounds take turns between what verdicts are made with
    and what they are judged by.

    Args:
        data: name of the data set.
        attacks: names.
        rounds: 1 or more.
        networks: taken in turn; one or two.

    Raises:
        InputError: no rounds, or an attack that there is not.
    """
    if rounds < 1:
        raise InputError(f"a zoo has 1 round or more, found {rounds}")
    names = [architecture_of(network) for network in networks]
    entries: list[Entry] = []
    for attack in attacks:
        # An unknown name is an InputError with a hint.
        ATTACKS[attack]
    for number in range(rounds):
        present = sorted(attack for attack in set(attacks) if is_held_out(attack) == (number % 2 == 1))
        for place, attack in enumerate(present):
            # Clean seeds keep the round's parity.
            clean = 2 * (number // 2 * len(present) + place) + number % 2
            network = names[(number // 2 + place) % len(names)]
            entries.append(Entry(data=data, network=network, attack=None, seed=clean))
            # A seed of its own: models of one seed share target, images and first weights, and are not independent.
            entries.append(Entry(data=data, network=network, attack=attack, seed=BACKDOORED + clean))
    return entries


def kept_back(train: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return the images that the models of a seed may be trained on, and those that are kept back for their scans.

    Args:
        train: training images.
        seed: of the entry; decides the division, which is class-balanced.
    """
    return hold_out(train, seed, share=min(KEPT / len(train), MOST_KEPT))


def fill(
    out: Path,
    entries: Sequence[Entry],
    train: ImageSet,
    test: ImageSet,
    size: int,
    recipe: Recipe,
    runtime: Runtime,
    networks: Sequence[partial[Any]] = NETWORKS,
) -> list[dict[str, Any]]:
    """Train the models that are missing, and return the rows of the zoo's index that belong to the entries.

    Args:
        out: the zoo's folder.
        entries: see `plan`.
        train: images of which each model sees `size`, drawn class-balanced by its seed; see `kept_back`.
        test: some of it measures accuracy and the attack's success.
        size: training images of a model; all if there are fewer.
        recipe: how models are trained.
        runtime: device and precision; seeds are the entries' own.
        networks: those that the entries name.

    Raises:
        InputError: the folder has models of another recipe under these names.
    """
    tested = draw_clean(test, min(MOST_TESTED, len(test)), 0)
    made = ways_of(entries, train, size, recipe, runtime, networks)
    by_name = {architecture_of(network): network for network in networks}
    _check_same(out, made)
    with runtime.progress.bar("zoo", len(entries)) as advance:
        for entry in entries:
            with claimed(out, entry.key) as mine:
                if mine and entry.key not in {row["key"] for row in rows_of(out / INDEX)}:
                    # Bars within a bar cannot be shown, and a budget is not a model's own.
                    quiet = replace(runtime, seed=entry.seed, budget=None, progress=Silent())
                    row = _made(out, entry, by_name[entry.network], train, tested, size, recipe, quiet)
                    append(out / INDEX, {**row, "made": made[entry.key]})
            advance()
    return [row for row in rows_of(out / INDEX) if row["key"] in made]


def ways_of(
    entries: Sequence[Entry],
    train: ImageSet,
    size: int,
    recipe: Recipe,
    runtime: Runtime,
    networks: Sequence[partial[Any]] = NETWORKS,
) -> dict[str, dict[str, Any]]:
    """Return how the model of each entry is made, by its key, as rows of an index have it under "made".

    Args:
        entries: see `plan`.
        train: see `fill`, as the others.
        size: training images of a model.
        recipe: how models are trained.
        runtime: its precision counts.
        networks: those that the entries name.
    """
    common = {"size": size, "recipe": options_of(recipe), "precision": runtime.precision, "images": train.digest()}
    common["kept"] = len(kept_back(train, 0)[1])
    told = {architecture_of(one): {"name": architecture_of(one), **one.keywords} for one in networks}
    ways: dict[str, dict[str, Any]] = json.loads(
        json.dumps({entry.key: {**common, "network": told[entry.network]} for entry in entries})
    )
    return ways


def _check_same(out: Path, made: Mapping[str, Mapping[str, Any]]) -> None:
    for row in rows_of(out / INDEX):
        if row["key"] in made and row["made"] != made[row["key"]]:
            raise InputError(
                f"{out} has {row['key']} already, made by another recipe, of another network or of other images; choose"
                " another --out"
            )


def _made(
    out: Path,
    entry: Entry,
    network: partial[Any],
    train: ImageSet,
    test: ImageSet,
    size: int,
    recipe: Recipe,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train and save a model, and return its row of the index; if none can be made of these data, the row says why."""
    start = time.perf_counter()
    row = {"key": entry.key, **vars(entry), "part": entry.part}
    folder = out / WORK / entry.key
    images = draw_clean(kept_back(train, entry.seed)[0], size, entry.seed)
    build = partial(new_network, network, images, runtime)
    try:
        attack = attack_of(entry, images, runtime) if entry.attack else None
        train_one = partial(_trained, attack, build, images, recipe, runtime, folder, entry.key)
        try:
            model, fitted = train_one()
        except ResumeError:
            # Of another recipe or another version, or torn: finished models are asked whether they are the same ones.
            shutil.rmtree(folder)
            model, fitted = train_one()
        trigger, criterion = (fitted.trigger, fitted.criterion) if fitted else (None, None)
        evaluation = evaluate(model, test, runtime, trigger, criterion)
    except InputError as error:
        shutil.rmtree(folder, ignore_errors=True)
        if entry.attack is None and not isinstance(error, DivergedError):
            # What clean models cannot be made of, none can.
            raise
        return {**row, "refused": str(error)}
    success = None if evaluation.asr is None else evaluation.asr.value
    made_by = {"program": "unbackdoor zoo", "seed": entry.seed, "network": network_options(model)}
    file = f"{MODELS}/{entry.key}.safetensors"
    mark = {"attack": options_of(attack), "criterion": fitted.criterion.to_json()} if fitted else None
    digest = save_model(out / file, model, provenance=made_by, backdoored=mark)
    shutil.rmtree(folder)
    return {
        **row,
        "file": file,
        "sha256": digest,
        "backdoored": None if success is not None and success < LEAST_SUCCESS else success is not None,
        "target": target_of(criterion),
        "acc": evaluation.acc.value,
        "asr": success,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _trained(
    attack: Attack | None,
    build: Callable[[], Network],
    images: ImageSet,
    recipe: Recipe,
    runtime: Runtime,
    folder: Path,
    name: str,
) -> tuple[Network, FittedAttack | None]:
    """Return a model of this name and its attack, if it has one; what is in the folder of its states goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    model = build()
    fitted = attack.prepare(images, build, runtime, folder) if attack else None
    data, hook = (fitted.train, fitted.hook) if fitted else (images, None)
    fit(model, data, recipe, runtime, hook=hook, resume=folder / RESUME, description=name)
    return model, fitted


def attack_of(entry: Entry, images: ImageSet, runtime: Runtime) -> Attack:
    """Return the entry's attack with a target drawn by the seed, and rates that its images can bear.

    Args:
        entry: with an attack.
        images: that the model is trained on.
        runtime: with the entry's seed.
    """
    assert entry.attack is not None
    attack = ATTACKS[entry.attack]()
    order = torch.randperm(images.classes, generator=runtime.generator("zoo target")).tolist()
    options: dict[str, Any] = {"target": order[0]}
    if isinstance(attack, TaCT):
        options |= {"sources": (order[1],), "covers": tuple(order[2:4])}
    if isinstance(attack, Poisoning):
        most = float((images.labels == order[0]).float().mean()) * MOST_OF_A_CLASS if attack.labels == "clean" else 1.0
        options["poison_rate"] = min(max(attack.poison_rate, LEAST_RATE), most)
        if attack.cover_rate:
            options["cover_rate"] = max(attack.cover_rate, LEAST_RATE)
    return replace(attack, **options)


def target_of(criterion: Criterion | None) -> int | None:
    """Return the one class that the attacker wants, or None if there is none."""
    return criterion.target if isinstance(criterion, (AllToOne, SourceSpecific)) else None


@contextlib.contextmanager
def claimed(out: Path, name: str) -> Iterator[bool]:
    """Yield whether this process may make what has this name in a zoo: no other one is at it, nor can be meanwhile."""
    (out / WORK).mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / WORK / f"{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        unlock(lock)


def rows_of(path: Path, needed: frozenset[str] = NEEDED) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines, oldest first; none if there is no file.

    Args:
        path: of the file.
        needed: names that every row has.

    Raises:
        InputError: a line is no JSON object with these names, and a text as its key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read; name the folder of a zoo") from error
    try:
        rows = [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} has a line that is no JSON; remove the line, or make the zoo again") from error
    if not all(isinstance(row, dict) and isinstance(row.get("key"), str) and needed <= row.keys() for row in rows):
        raise InputError(f"{path} has a line that is no row of a zoo; remove the line, or make the zoo again")
    return rows


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a file of JSON lines that other processes add to as well; it is complete at any moment."""
    with FileLock(path.with_name(f".{path.name}.lock")):
        before = path.read_bytes() if path.exists() else b""
        write_bytes(path, before + json.dumps(row).encode() + b"\n")
