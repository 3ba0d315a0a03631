"""MESA in its protocol: no defence, the ideal one, the pixel-space baseline, single sub-models and the ensemble.

Victims are made as the paper makes them: a clean model is fine-tuned on images of which one in a hundred, drawn anew in
each batch, carries the patch and the attacker's label. The defender has training images, never test images.

Writes one line of JSON a finished row to results/mesa.jsonl, the table results/mesa.md, and a page with what was
recovered from the first victim of each kind, the attacker's trigger in it. A finished row or sweep is not done again,
and an interrupted training goes on:

    python benchmarks/mesa.py --data ../shared/data                                # the small stand-in
    python benchmarks/mesa.py --device cuda --width 64 --patterns 51 --colors 10 --gtsrb 10 --repeats 10
    python benchmarks/mesa.py --speed                                              # beside one-by-one training
    python benchmarks/mesa.py --table                                              # only write the table

The ideal defence retrains on the attacker's own trigger, and "known target" is told the class: both are oracles, which
is why they are here and nowhere else. Every other row finds the target by the sweep.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from naive.mesa import train as train_one_by_one
from record import HERE, Rows, machines, measured
from torch import Tensor, nn

from unbackdoor.attacks import AllToOne
from unbackdoor.attacks.mesa_patch import Scattered, black_and_white_patterns
from unbackdoor.data import DefenderData, ImageSet, draw_clean, read_images
from unbackdoor.evaluate import evaluate
from unbackdoor.files import sha256
from unbackdoor.models import Network, ResNet18
from unbackdoor.options import options_of
from unbackdoor.purify import PixelSpace
from unbackdoor.purify.mesa import Recovered
from unbackdoor.purify.retraining import FixedPatches, Retraining, Triggers
from unbackdoor.report import Report, distribution_chart, distribution_gallery, write_report
from unbackdoor.scan import MESA, TriggerDistribution
from unbackdoor.scan.patches import draw_places, stamped
from unbackdoor.training import Batch, Hook, Recipe, Runtime, fit, new_network
from unbackdoor.training.resume import Resume

SIZE, POISONED = 3, 0.01
SUPPORT = 8000
"""Clean training images of the defender."""
SUPPORTS = (100, 200, 500, 1000, 2000, 4000)
"""Smaller ones, in the study of their number."""
WRONG_SIZES: tuple[tuple[int, ...], ...] = ((2,), (4,), (5,), (2, 3, 4, 5))
"""Sides that the defender takes for those of the trigger, in the study of the prior; several are swept."""
SPEED_STEPS, SPEED_TURNS = 20, 3

FINE_TUNING = Recipe(
    epochs=10,
    learning_rate=1e-3,
    nesterov=False,
    weight_decay=0.0,
    schedule="constant",
    label_smoothing=0.0,
    ema=0.0,
    augmentation="none",
    low_resolution=0.0,
)
"""Of victims; the paper's."""

PAPER = {
    "none": (98.7, None, None),
    "ideal": (2.4, 3.7, None),
    "pixel space": (10.5, 51.4, 22.75),
    "beta 0.9": (3.4, 5.9, 2.04),
    "beta 0.8": (3.6, 9.1, 1.93),
    "beta 0.5": (4.2, 9.0, 1.77),
    "ensemble": (3.6, 8.2, 1.91),
}
"""ASR in percent on CIFAR-10: mean and worst of 51 black-and-white triggers, and mean of random colours."""

KNOWN = ("pixel space, known target", "ensemble, known target")
DEFENSES = (*PAPER, "ensemble by density", *KNOWN)
COMPARED = ("none", "ideal", "pixel space", "ensemble", *KNOWN)
"""Trigger by trigger."""


@dataclass(frozen=True, kw_only=True)
class Victim:
    """What an attacker did.

    Attributes:
        data: folder of the data set.
        kind: "black and white" or "random colors".
        number: of the pattern, or the seed of colours and target.
        target: class.
    """

    data: str
    kind: str
    number: int
    target: int

    @property
    def name(self) -> str:
        """Of files."""
        return f"{self.data}-{self.kind.replace(' ', '-')}-{self.number}"

    def patch(self, channels: int) -> Tensor:
        """Return the trigger."""
        if self.kind == "black and white":
            return black_and_white_patterns()[self.number].expand(channels, -1, -1).clone()
        return torch.rand(channels, SIZE, SIZE, generator=torch.Generator().manual_seed(self.number))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a defender has and believes.

    Attributes:
        support: clean images.
        sizes: of the trigger.
    """

    support: int = SUPPORT
    sizes: tuple[int, ...] = (SIZE,)


@dataclass(frozen=True, kw_only=True)
class How:
    """What a call of this program decides; rows of another one are in another table.

    Attributes:
        sweep: the scanner with its schedule.
        retraining: of the repairs.
        epochs: of the clean model.
        seed: of everything; repeats add to it.
    """

    sweep: MESA = field(default_factory=MESA)
    retraining: Retraining = field(default_factory=Retraining)
    epochs: int = Recipe.epochs
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        told = {"sweep": options_of(self.sweep), "retraining": options_of(self.retraining), "epochs": self.epochs}
        content: dict[str, Any] = json.loads(json.dumps({**told, "seed": self.seed}))
        return content

    def made(self, row: dict[str, Any]) -> bool:
        """Return whether a row is of such a call; without a defence its options do not matter."""
        names = ("epochs", "seed") if row["defense"] == "none" else tuple(self.to_json())
        return all(row[name] == self.to_json()[name] for name in names)


class Poisoning(Hook):
    """Stamps and relabels a share of each batch.

    Args:
        patch: the trigger.
        target: the attacker's label.
    """

    def __init__(self, patch: Tensor, target: int) -> None:
        self.patch, self.target = patch, target

    def identity(self) -> object:
        """Return what the attacker does."""
        return (type(self).__name__, POISONED, self.patch.tolist(), self.target)

    def batch(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with poison in it, at a place of its own in each image."""
        place, (channels, height, width) = batch.images.device, batch.images.shape[1:]
        chosen = (torch.rand(len(batch.images), generator=generator) < POISONED).nonzero().squeeze(1)
        places = draw_places(len(chosen), (channels, height, width), SIZE, generator).to(place)
        images, targets, rows = batch.images.clone(), batch.targets.clone(), chosen.to(place)
        patches = self.patch.to(place).expand(len(chosen), -1, -1, -1)
        images[rows], targets[rows] = stamped(images[rows], patches, places), self.target
        return replace(batch, images=images, targets=targets)


class Bench:
    """Data, victims and results.

    Args:
        data: folder of the data sets.
        work: folder for models and states.
        width: of ResNet18.
        how: schedules and seed.
        rows: results.
        runtime: device, threads and the same seed.
    """

    def __init__(
        self,
        data: Path,
        work: Path,
        width: int,
        how: How,
        rows: Rows,
        runtime: Runtime,
    ) -> None:
        self.data, self.work, self.width, self.rows, self.runtime = data, work, width, rows, runtime
        self.how, self.sweep, self.retraining, self.epochs = how, how.sweep, how.retraining, how.epochs
        self.sets: dict[str, tuple[ImageSet, ImageSet]] = {}
        work.mkdir(parents=True, exist_ok=True)

    def images(self, name: str) -> tuple[ImageSet, ImageSet]:
        """Return training and test images of a data set."""
        if name not in self.sets:
            self.sets = {name: (read_images(self.data / name, "train"), read_images(self.data / name, "test"))}
        return self.sets[name]

    def victim(self, victim: Victim) -> Network:
        """Return the backdoored model, trained if it is not there yet."""
        train, _ = self.images(victim.data)
        network = new_network(partial(ResNet18, width=self.width), train, self.runtime)
        # German traffic signs must not be mirrored.
        clean = Recipe(epochs=self.epochs, augmentation="light" if victim.data == "cifar10" else "crop")
        made = f"{self.width}-{self.epochs}-{self.runtime.seed}"
        state = self.work / f"{victim.data}-clean-{made}.pt"
        fit(network, train, clean, self.runtime, resume=state, description=f"clean model of {victim.data}")
        hook, state = Poisoning(victim.patch(train.shape[0]), victim.target), self.work / f"{victim.name}-{made}.pt"
        fit(network, train, FINE_TUNING, self.runtime, hook=hook, resume=state, description=victim.name)
        return network

    def run(self, victim: Victim, setting: Setting, defenses: Sequence[str], repeats: int = 1) -> None:
        """Add the rows of a victim that are missing, each defence with so many seeds."""
        done = {row["key"] for row in self.rows.read()}
        wanted = [(name, repeat) for name in defenses for repeat in range(1 if name == "none" else repeats)]
        left = [(name, repeat) for name, repeat in wanted if self.key(victim, setting, name, repeat) not in done]
        if not left:
            return
        model, (train, test) = self.victim(victim), self.images(victim.data)
        clean = draw_clean(train, setting.support, self.runtime.seed)
        patch = victim.patch(train.shape[0])
        for name, repeat in left:
            names = {"key": self.key(victim, setting, name, repeat), "defense": name}
            if name == KNOWN[1] and (same := self._named_alone(victim, setting, repeat)):
                self.rows.append({**same, **names, "copied": True})
                continue
            with measured() as cost:
                repaired, told = self.defend(name, model, clean, victim, setting, repeat)
            found = evaluate(repaired, test, self.runtime, Scattered(patch), AllToOne(target=victim.target)).to_json()
            row = {**self.runtime.describe(), **vars(victim), "support": setting.support, "sizes": setting.sizes}
            row |= {**names, "repeat": repeat, "width": self.width, **told, **found, **self.how.to_json()}
            self.rows.add(row, cost)
            print(victim.name, setting, name, repeat, f"ASR {100 * found['asr']['value']:.2f} %", flush=True)

    def _named_alone(self, victim: Victim, setting: Setting, repeat: int) -> dict[str, Any] | None:
        """Return the row of the ensemble if the sweep named the target alone: told the target, it does the same."""
        key = self.key(victim, setting, "ensemble", repeat)
        return next(
            (row for row in self.rows.read() if row["key"] == key and row["suspected"] == [victim.target]), None
        )

    def key(self, victim: Victim, setting: Setting, what: str, repeat: int = 0) -> str:
        """Return what tells a row, or a file of what was found, from the others."""
        # Without a defence there is none of it.
        how = "" if what == "none" else f"{self.sweep} {self.retraining}"
        return repr((victim, setting, what, repeat, self.width, self.epochs, self.runtime.seed, how))

    def defend(
        self, name: str, model: Network, clean: ImageSet, victim: Victim, setting: Setting, repeat: int
    ) -> tuple[Network, dict[str, Any]]:
        """Return the model that a defence leaves, and what to keep of it.

        The sweep of a victim, which is long, is done once. Its retraining, and all of the pixel-space baseline, have
        the repeat's seed.
        """
        if name == "none":
            return model, {}
        runtime = replace(self.runtime, seed=self.runtime.seed + repeat)
        if name.startswith("pixel space"):
            options = {one: getattr(self.retraining, one) for one in vars(self.retraining)}
            method, told = PixelSpace(size=setting.sizes[0], **options), victim.target if name in KNOWN else None
            one = method.find(model, DefenderData(clean=clean), runtime, told)
            suspected = [] if one["target"] is None else [one["target"]]
            left = {"suspected": suspected, "note": one["note"]}
            if not suspected:
                return model, left
            return self._retrained(model, clean, FixedPatches(one["patch"][None]), runtime), left
        if name == "ideal":
            return self._retrained(model, clean, FixedPatches(victim.patch(clean.shape[0])[None]), runtime), {}
        found = self.swept(model, clean, victim, setting)
        told = {key: value for key, value in found.items() if key != "distributions"}
        distributions = [TriggerDistribution.from_state(state) for state in found["distributions"]]
        if name == "ensemble, known target":
            chosen = [one for one in distributions if one.target == victim.target]
            chosen = chosen or self._learned(model, clean, victim, setting, found["size"])
        else:
            chosen = [one for one in distributions if one.target in found["suspected"]]
        if name.startswith("beta "):
            number = self.sweep.betas.index(float(name.removeprefix("beta ")))
            chosen = [one.only(number) for one in chosen]
        if not chosen:
            return model, told
        draw = "density" if name == "ensemble by density" else "cycle"
        return self._retrained(model, clean, Recovered(chosen, draw), runtime), told

    def swept(self, model: Network, clean: ImageSet, victim: Victim, setting: Setting) -> dict[str, Any]:
        """Return what the sweep of a victim found, from a file if it was done before."""

        def sweep() -> dict[str, Any]:
            start = time.perf_counter()
            finding = replace(self.sweep, sizes=setting.sizes).scan(model, DefenderData(clean=clean), self.runtime)
            return {
                "suspected": list(finding.suspected),
                "anomaly": finding.anomaly.tolist(),
                "size": finding.evidence["trigger_side"],
                "success": [one.success.tolist() for one in finding.distributions],
                "weights": [one.weights.tolist() for one in finding.distributions],
                "sweep_seconds": round(time.perf_counter() - start, 1),
                "distributions": [one.state() for one in finding.distributions],
            }

        return self._kept("sweep", victim, setting, sweep)

    def _learned(
        self, model: Network, clean: ImageSet, victim: Victim, setting: Setting, size: int
    ) -> list[TriggerDistribution]:
        """Return the distribution for the target, which is told, from a file if it was learned before."""

        def learn() -> dict[str, Any]:
            frozen = self.runtime.settle(copy.deepcopy(model)).eval().requires_grad_(False)
            ordered = clean.in_canonical_order().to(self.runtime.place)
            found, _ = self.sweep.distributions(frozen, ordered, [victim.target], size, self.runtime)
            return {"distributions": [one.state() for one in found]}

        kept = self._kept("target", victim, setting, learn)
        return [TriggerDistribution.from_state(state) for state in kept["distributions"]]

    def _kept(self, what: str, victim: Victim, setting: Setting, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is made of a victim, from a file if it was made before."""
        key = self.key(victim, setting, what)
        saved = Resume(self.work / f"{what}-{sha256(key.encode())[:16]}.pt", key)
        state = saved.read()
        if state is None:
            state = make()
            saved.write(state)
        return state

    def _retrained(self, model: Network, clean: ImageSet, triggers: Triggers, runtime: Runtime) -> Network:
        repaired = copy.deepcopy(model)
        self.retraining.fit(repaired, clean, triggers, runtime, None)
        return repaired.eval()

    def page(self, victim: Victim, path: Path) -> None:
        """Write what was recovered from a victim, with the attacker's trigger in it."""
        train, _ = self.images(victim.data)
        clean = draw_clean(train, SUPPORT, self.runtime.seed)
        found = self.swept(self.victim(victim), clean, victim, Setting())
        learned = [TriggerDistribution.from_state(state) for state in found["distributions"]]
        mine = [one for one in learned if one.target == victim.target]
        if not mine:
            return
        name = train.class_names[victim.target]
        chart = distribution_chart(mine[0], name, victim.patch(train.shape[0]))
        gallery = distribution_gallery(mine, train.class_names)
        write_report(path, Report(title=f"Triggers recovered from {victim.name}", galleries=[gallery], charts=[chart]))

    def speed(self, victim: Victim) -> None:
        """Add the row that times the batched training beside one sub-model after the other."""
        model, clean = self.victim(victim), draw_clean(self.images(victim.data)[0], SUPPORT, self.runtime.seed)
        place, targets = self.runtime.place, list(range(self.sweep.finalists))
        frozen = self.runtime.settle(copy.deepcopy(model)).eval().requires_grad_(False)
        plain = copy.deepcopy(model).to(place, memory_format=torch.contiguous_format).eval()
        here = clean.to(place)

        def ours(sweep: MESA) -> None:
            sweep.distributions(frozen, here, targets, SIZE, self.runtime)

        def naive(sweep: MESA) -> None:
            train_one_by_one(sweep, plain, clean, targets, SIZE, self.runtime.seed, place)

        sides = {"ours": ours, "naive": naive}
        # What libraries do at their first call is on neither clock.
        for work in sides.values():
            work(replace(self.sweep, steps=1))
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(SPEED_TURNS):
            for name, work in sides.items():
                with measured() as cost:
                    work(replace(self.sweep, steps=SPEED_STEPS))
                    if place.type == "cuda":
                        torch.cuda.synchronize()
                seconds[name].append(round(cost.seconds, 2))
        row = {**self.runtime.describe(), "key": f"speed {self.width}", "width": self.width, "seconds_of": seconds}
        self.rows.append({**row, "steps": SPEED_STEPS, "sub_models": len(targets) * len(self.sweep.betas)})


def victims(patterns: int, colors: int, gtsrb: int) -> Iterator[Victim]:
    """Yield the attackers: black-and-white patterns spread over the 51, and random colours."""
    for number in range(patterns):
        chosen = round(number * 50 / max(1, patterns - 1))
        yield Victim(data="cifar10", kind="black and white", number=chosen, target=0)
    for number in range(colors):
        yield Victim(data="cifar10", kind="random colors", number=number, target=0)
    for number in range(gtsrb):
        target = int(torch.randint(43, (), generator=torch.Generator().manual_seed(1000 + number)))
        yield Victim(data="gtsrb", kind="random colors", number=number, target=target)


def main() -> None:
    """Do the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("build/mesa"), help="models and states")
    parser.add_argument("--width", type=int, default=16, help="of ResNet18; the paper's is 64")
    parser.add_argument("--patterns", type=int, default=12, help="black-and-white triggers, up to 51")
    parser.add_argument("--colors", type=int, default=4, help="triggers of random colours")
    parser.add_argument("--gtsrb", type=int, default=2, help="triggers of random colours and targets on GTSRB")
    parser.add_argument("--repeats", type=int, default=3, help="seeds of each defence; the paper takes 10")
    parser.add_argument("--studied", type=int, default=2, help="victims of the studies of support and size")
    parser.add_argument("--steps", type=int, default=MESA.steps, help="of the generators")
    parser.add_argument("--stamped", type=float, default=Retraining.stamped, help="share of images in the repairs")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs, help="of the clean model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--speed", action="store_true", help="only time the batched training")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    name = "mesa" if arguments.device == "cpu" else f"mesa_{arguments.device}"
    results = HERE / "results"
    rows, table = Rows(results / f"{name}.jsonl"), results / f"{name}.md"
    how = How(
        # The paper's sweep is over all classes; GTSRB has 43.
        sweep=MESA(steps=arguments.steps, most_classes=43),
        retraining=Retraining(stamped=arguments.stamped),
        epochs=arguments.epochs,
        seed=arguments.seed,
    )
    if not arguments.table:
        bench = Bench(
            arguments.data,
            arguments.work,
            arguments.width,
            how,
            rows,
            Runtime(device=arguments.device, threads=arguments.threads, seed=arguments.seed),
        )
        wanted = list(victims(arguments.patterns, arguments.colors, arguments.gtsrb))
        if arguments.speed:
            bench.speed(wanted[0])
        else:
            do(bench, wanted, arguments.repeats, arguments.studied, table)
    table.write_text(written(rows.read(), how))
    print(table)


def do(bench: Bench, wanted: Sequence[Victim], repeats: int, studied: int, table: Path) -> None:
    """Do all defences once on all victims, of the kinds in turn, then the studies, then the further runs.

    So that there is something of everything early: it takes a day.
    """
    wanted = _in_turn(wanted)
    plan = [(victim, Setting(), DEFENSES, 1) for victim in wanted]
    for victim in [one for one in wanted if one.data == "cifar10"][:studied]:
        plan += [(victim, Setting(support=support), ("ensemble",), 1) for support in SUPPORTS]
        plan += [(victim, Setting(sizes=sizes), ("ensemble",), 1) for sizes in WRONG_SIZES]
    plan += [(victim, Setting(), DEFENSES, repeats) for victim in wanted]
    shown: set[tuple[str, str]] = set()
    for victim, setting, defenses, count in plan:
        bench.run(victim, setting, defenses, count)
        table.write_text(written(bench.rows.read(), bench.how))
        if (victim.data, victim.kind) not in shown:
            shown.add((victim.data, victim.kind))
            bench.page(victim, table.with_name(f"{table.stem}-{victim.name}.html"))


def _in_turn(wanted: Sequence[Victim]) -> list[Victim]:
    """Return the first victim of each kind, then the second of each, and so on."""
    kinds: dict[tuple[str, str], list[Victim]] = {}
    for victim in wanted:
        kinds.setdefault((victim.data, victim.kind), []).append(victim)
    return [one for row in itertools.zip_longest(*kinds.values()) for one in row if one is not None]


def written(rows: Sequence[dict[str, Any]], how: How) -> str:
    """Return the rows of such a call as Markdown."""
    speeds = [row for row in rows if "seconds_of" in row]
    rows = [row for row in rows if "seconds_of" not in row and how.made(row)]
    usual = [row for row in rows if row["support"] == SUPPORT and row["sizes"] == [SIZE]]
    lines = [
        "# MESA",
        "",
        f"Made by `python benchmarks/mesa.py`: ResNet18, a clean model fine-tuned for {FINE_TUNING.epochs} epochs with"
        f" {100 * POISONED:g} % of each batch poisoned by a patch of {SIZE} x {SIZE} pixels at random places; the"
        f" defender has {SUPPORT} training images. ASR of test images that are not of the target class. The ideal"
        ' defence knows the trigger, and "known target" the class; all other rows find the class by the sweep, the'
        " pixel-space baseline by a patch for every class, and leave the model as it is where none is named. With"
        " several runs a trigger's ASR is their mean; the sweep of a victim, over all classes, is done once, and each"
        " run has its own seed in the retraining and in the search of the pixel-space baseline. Where the sweep names"
        " the target alone, the ensemble that is told it is the same model. The paper's figures are of ResNet18 of"
        " width 64, support sets of test images, a known target, all 51 black-and-white patterns and ten of random"
        " colours, and averages of 10 rounds.",
        "",
        f"Here: {how.sweep.steps} steps of the generators, {100 * how.retraining.stamped:g} % of the images stamped in"
        f" the repairs, clean models of {how.epochs} epochs, seed {how.seed}.",
        "",
        *machines([*rows, *speeds]),
        "",
        "| data | trigger | width | defence | victims | runs | ASR mean % | worst % | ACC mean % | ACC fell by"
        " | target named | paper: mean | worst |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *_means(usual),
        "",
        "## Trigger by trigger",
        "",
        "ASR in percent: the mean of the runs, and their standard deviation.",
        "",
        *_below(usual),
        "",
        f"| victim | width | {' | '.join(COMPARED)} |",
        f"|---|---:|{'---:|' * len(COMPARED)}",
        *_triggers(usual),
        "",
        "## The number of clean images, and what a wrong size costs",
        "",
        "The first run of the ensemble; the first line of each victim is the usual setting. Several sizes are swept.",
        "",
        "| victim | width | clean images | sizes | size chosen | ASR % | ACC % | target named |",
        "|---|---:|---:|---|---:|---:|---:|---|",
        *_studies(rows),
    ]
    if speeds:
        lines += [
            "",
            "## Batched training beside one sub-model after the other",
            "",
            "Seconds of the same steps of as many sub-models, in turns in one run; the plain one is float32 with one"
            " image at a time and gradients for the model's weights (`benchmarks/naive/mesa.py`).",
            "",
            "| width | sub-models | steps | seconds, ours | naive | ratio |",
            "|---:|---:|---:|---:|---:|---:|",
            *map(_speed, speeds),
        ]
    return "\n".join(lines) + "\n"


def _groups(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[str, str, int], dict[str, list[dict[str, Any]]]]]:
    """Yield data set, kind of trigger and width, and the rows of each defence there."""

    def group(row: dict[str, Any]) -> tuple[str, str, int]:
        return row["data"], row["kind"], row["width"]

    for one in sorted({group(row) for row in rows}):
        of_group = [row for row in rows if group(row) == one]
        some = {name: [row for row in of_group if row["defense"] == name] for name in DEFENSES}
        yield one, {name: found for name, found in some.items() if found}


def _seeds(rows: Sequence[dict[str, Any]], what: str) -> dict[int, list[float]]:
    """Return a rate in percent with every seed, for each trigger, in the order of their numbers."""
    found: dict[int, list[float]] = {row["number"]: [] for row in sorted(rows, key=lambda row: row["number"])}
    for row in rows:
        found[row["number"]].append(100 * row[what]["value"])
    return found


def _of_triggers(rows: Sequence[dict[str, Any]], what: str) -> dict[int, float]:
    """Return a rate in percent for each trigger, the mean over seeds."""
    return {number: statistics.mean(values) for number, values in _seeds(rows, what).items()}


def _means(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for (data, kind, width), defenses in _groups(rows):
        before = _of_triggers(defenses.get("none", ()), "acc")
        for name, some in defenses.items():
            asr, acc = (_of_triggers(some, what) for what in ("asr", "acc"))
            fell = [before[number] - value for number, value in acc.items() if number in before]
            # A sweep is done once, whatever the number of seeds; of the baseline's searches the first one counts.
            first = sorted((row for row in some if "suspected" in row), key=lambda row: -row["repeat"])
            named = {row["number"]: row["target"] in row["suspected"] for row in first}
            told = name not in KNOWN and named
            paper = PAPER.get(name, (None, None, None)) if data == "cifar10" else (None, None, None)
            theirs = paper[:2] if kind == "black and white" else (paper[2], None)
            # Without a defence the worst trigger is the weakest one.
            worst = min(asr.values()) if name == "none" else max(asr.values())
            fields = [
                *(data, kind, str(width), name, str(len(asr)), str(len(some))),
                *(f"{value:.2f}" for value in (statistics.mean(asr.values()), worst, statistics.mean(acc.values()))),
                f"{statistics.mean(fell):.2f}" if fell else "",
                f"{sum(named.values())} of {len(named)}" if told else "",
                *("" if value is None else f"{value:g}" for value in theirs),
            ]
            yield f"| {' | '.join(fields)} |"


def _triggers(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for (data, kind, width), defenses in _groups(rows):
        seeds = {name: _seeds(defenses.get(name, ()), "asr") for name in COMPARED}
        for number in sorted({number for of_defense in seeds.values() for number in of_defense}):
            rates = [seeds[name].get(number, []) for name in COMPARED]
            yield f"| {data}, {kind} {number} | {width} | {' | '.join(map(_spread, rates))} |"


def _spread(rates: Sequence[float]) -> str:
    """Return the mean, and the standard deviation of several."""
    if len(rates) < 2:
        return "".join(f"{rate:.2f}" for rate in rates)
    return f"{statistics.mean(rates):.2f} ± {statistics.stdev(rates):.2f}"


def _below(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield on how many triggers the ensemble's mean is below that of the baseline, with and without the target."""
    for (data, kind, width), defenses in _groups(rows):
        for pair in (("ensemble", "pixel space"), KNOWN[::-1]):
            ours, theirs = (_of_triggers(defenses.get(name, ()), "asr") for name in pair)
            both = ours.keys() & theirs.keys()
            if both:
                fewer = sum(ours[number] < theirs[number] for number in both)
                yield f"- {data}, {kind}, width {width}: {' below '.join(pair)} on {fewer} of {len(both)}"


def _studies(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    def name(row: dict[str, Any]) -> tuple[str, str, int, int]:
        return row["data"], row["kind"], row["number"], row["width"]

    def usual(row: dict[str, Any]) -> bool:
        return row["support"] == SUPPORT and row["sizes"] == [SIZE]

    ensemble = [row for row in rows if row["defense"] == "ensemble" and not row["repeat"]]
    studied = {name(row) for row in ensemble if not usual(row)}
    some = [row for row in ensemble if name(row) in studied]
    for row in sorted(some, key=lambda row: (name(row), not usual(row), row["sizes"], row["support"])):
        fields = [
            *(f"{row['data']}, {row['kind']} {row['number']}", str(row["width"]), str(row["support"])),
            *(", ".join(map(str, row["sizes"])), str(row["size"])),
            *(f"{100 * row[key]['value']:.2f}" for key in ("asr", "acc")),
            "yes" if row["target"] in row["suspected"] else "no",
        ]
        yield f"| {' | '.join(fields)} |"


def _speed(row: dict[str, Any]) -> str:
    ours, naive = (statistics.mean(row["seconds_of"][side]) for side in ("ours", "naive"))
    fields = (row["width"], row["sub_models"], row["steps"], f"{ours:.1f}", f"{naive:.1f}", f"{naive / ours:.2f}")
    return f"| {' | '.join(map(str, fields))} |"


if __name__ == "__main__":
    main()
