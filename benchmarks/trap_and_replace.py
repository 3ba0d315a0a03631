"""Trap-and-Replace on the attacks of its paper and on adaptive ones, beside no defence and I-BAU.

The adaptive attack is tried twice: with a trigger that was searched in a plainly trained model, and with one that was
searched in a model which the attacker trained by the method itself, on the data before they were poisoned.

Writes one line of JSON a finished row to results/trap_and_replace.jsonl and the table results/trap_and_replace.md. A
finished row is not done again, and an interrupted training goes on.

    python benchmarks/trap_and_replace.py --epochs 60          # the paper's schedule has 200
    python benchmarks/trap_and_replace.py --table              # only write the table
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from record import HERE, Rows, machines, measured, share
from tables import all_measured, error, mean, percent
from torch import Tensor, nn

from unbackdoor.attacks import AdaptiveTrap, Attack, BadNets, Blended, Invisible, LabelConsistent, Smooth, TrojanNN
from unbackdoor.commands.reconstructed import reconstruction_of
from unbackdoor.data import DefenderData, ImageSet, balanced_rows, read_images
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network, WRN16x1, save_model
from unbackdoor.options import options_of
from unbackdoor.purify import IBAU
from unbackdoor.secure import Decoder, Trained, TrapAndReplace
from unbackdoor.secure.decoder import decoder_for, features_shape
from unbackdoor.training import Batch, Hook, Recipe, Runtime, fit, new_network
from unbackdoor.training.resume import states

CLEAN = 2500
"""Images held out, which are never poisoned and never trained on as untrusted ones: 5 % of CIFAR-10."""

RATE, WHOLE_CLASS = 5_000 / (50_000 - CLEAN), 0.1
"""Poison of the images that are trained on: 5,000 of them, and all of the target class, as in the authors' program."""

DIRTY: dict[str, Any] = {"spare_target": True, "poison_rate": RATE}

PAPER: dict[str, Attack] = {
    "square": BadNets(size=4, margin=1, **DIRTY),
    "grid": BadNets(patch="grid", **DIRTY),
    "Trojan, 8 x 8": TrojanNN(shape="square", **DIRTY),
    "Trojan, watermark": TrojanNN(shape="watermark", **DIRTY),
    "l2-invisible": Invisible(norm="l2", **DIRTY),
    "l0-invisible": Invisible(norm="l0", **DIRTY),
    "blend": Blended(pattern="cartoon", **DIRTY),
    "smooth": Smooth(**DIRTY),
    "SIG": Blended(pattern="stripes", labels="clean", poison_rate=WHOLE_CLASS),
    "clean-label": LabelConsistent(patch="grid", poison_rate=WHOLE_CLASS),
}
"""Ten of the eleven of its program: all but a Trojan of 3 x 3 (see docs/methods/trap-and-replace.md)."""

ADAPTIVE: dict[str, Attack] = {
    "adaptive, l2": AdaptiveTrap(norm="l2", **DIRTY),
    "adaptive, l0": AdaptiveTrap(norm="l0", **DIRTY),
}
"""Our own, searched in a plainly trained model."""

BAITED = {f"{name}, baited": attack for name, attack in ADAPTIVE.items()}
"""The same, searched in a model that was trained by the method; `Bench.attack` names it."""

ATTACKS = PAPER | ADAPTIVE | BAITED

DEFENSES = ("none", "I-BAU", "Trap-and-Replace")
ERRORS = ("clean", "triggered")
"""Images of which the reconstruction error is told."""

MOST, SEEDS = 0.10, 3
"""ASR, mean over the attacks of the paper and so many seeds, that Trap-and-Replace may leave."""


REBUILDING = Recipe(
    epochs=20,
    batch_size=256,
    optimizer="Adam",
    learning_rate=1e-3,
    weight_decay=0.0,
    schedule="cosine",
    label_smoothing=0.0,
    ema=0.0,
    augmentation="crop-flip",
    low_resolution=0.0,
)
"""Of decoders for networks that were trained without one."""


class Looking(nn.Module):
    """A frozen stem, in evaluation mode throughout, and a decoder that learns.

    Args:
        network: cut where Trap-and-Replace cuts it.
        seed: of the decoder's weights.
    """

    def __init__(self, network: Network, seed: int) -> None:
        super().__init__()
        at = network.last_block()
        self.decoder = decoder_for(at, features_shape(network, at), network.description.image_shape, seed)
        self.stem, _ = network.split(at)
        self.stem.requires_grad_(False)

    def train(self, mode: bool = True) -> Looking:
        """Set the mode of the decoder alone."""
        super().train(mode)
        self.stem.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the images as the decoder makes them of the stem's features."""
        rebuilt: Tensor = self.decoder(self.stem(images))
        return rebuilt


class Rebuilding(Hook):
    """The mean squared error of the images."""

    def identity(self) -> object:
        """Return the name."""
        return "rebuilding"

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return it."""
        return F.mse_loss(model(batch.images).float(), batch.images)


class Bench:
    """One data set, one seed.

    Args:
        data: CIFAR-10 as parquet files in Hugging Face layout.
        work: folder for the states of interrupted trainings.
        method: with its schedule.
        runtime: device, threads and seed.
    """

    def __init__(self, data: Path, work: Path, method: TrapAndReplace, runtime: Runtime) -> None:
        train, self.test = read_images(data, "train"), read_images(data, "test")
        held = balanced_rows(train.labels, CLEAN, runtime.seed)
        others = train.labels.new_ones(len(train)).index_fill(0, held, 0).nonzero().squeeze(1)
        self.clean, self.train = train.subset(held), train.subset(others)
        self.work, self.method, self.runtime = work, method, runtime

    def run(self, name: str, defense: str) -> dict[str, Any]:
        """Return one row."""
        # A schedule that was another is another run, and in a surrogate of another schedule another trigger is found.
        schedule = f"-{self.method.epochs}-{self.method.head_epochs}"
        made = schedule if name in BAITED else ""
        folder = self.work / f"{name}-{self.runtime.seed}{made}".replace(" ", "")
        folder.mkdir(parents=True, exist_ok=True)
        fitted = self.attack(name).prepare(self.train, self.build, self.runtime, folder)
        data = DefenderData(untrusted=fitted.train, clean=self.clean)
        state = folder / f"{defense}{schedule if defense == DEFENSES[-1] else ''}.pt"
        # I-BAU's seconds are of the repair alone, whether or not the victim was there already.
        victim = self.plain(fitted.train, folder) if defense == "I-BAU" else None
        resumed = bool(states(state))
        with measured() as cost:
            trained = self.defend(defense, data, state, victim)
        row: dict[str, Any] = {**self.runtime.describe(), "attack": name, "defense": defense, "resumed": resumed}
        row |= {"options": options_of(self.method), "recipe": options_of(Recipe())}
        trigger, criterion = fitted.trigger, fitted.criterion
        row |= evaluate(trained.network, self.test, self.runtime, trigger, criterion).to_json()
        decoder = trained.parts.get("decoder") or self.decoder(trained.network, fitted.train, state)
        rebuilt = reconstruction_of(trained.network, decoder, self.test, self.runtime, trigger, criterion)
        return {**row, "mse": None if rebuilt is None else rebuilt.to_json(), "cost": cost}

    def attack(self, name: str) -> Attack:
        """Return an attack, with the model in which its trigger is searched if it needs one of our making."""
        attack = ATTACKS[name]
        if name not in BAITED:
            return attack
        assert isinstance(attack, AdaptiveTrap)
        return replace(attack, clean_model=self.surrogate())

    def surrogate(self) -> Path:
        """Return the file of a model that the attacker trained as the defender does; it is made if it is not there.

        The attacker has the training data before they are poisoned, and takes what the method needs clean from them.
        The defender's weights to begin with, clean images and draws are unknown to the attacker.
        """
        own = replace(self.runtime, seed=self.runtime.generator("surrogate").initial_seed())
        name = f"surrogate-{self.runtime.seed}-{self.method.epochs}-{self.method.head_epochs}"
        path = self.work / f"{name}.safetensors"
        if not path.exists():
            clean = self.train.subset(balanced_rows(self.train.labels, CLEAN, own.seed))
            data = DefenderData(untrusted=self.train, clean=clean)
            build = partial(new_network, partial(WRN16x1), self.train, own)
            self.work.mkdir(parents=True, exist_ok=True)
            trained = self.method.train(build, data, own, path.with_suffix(".pt"))
            save_model(path, trained.network, provenance={"method": options_of(self.method), "seed": own.seed})
        return path

    def build(self) -> Network:
        """Return an untrained network."""
        return new_network(partial(WRN16x1), self.train, self.runtime)

    def plain(self, train: ImageSet, folder: Path) -> Trained:
        """Return a network that was trained as if nothing were wrong."""
        network = self.build()
        history = fit(network, train, Recipe(), self.runtime, resume=folder / "none.pt")
        return Trained(network=network, history=history)

    def decoder(self, network: Network, train: ImageSet, state: Path) -> Decoder:
        """Return a decoder for a network that was trained without one, learned from the same images."""
        looking = Looking(copy.deepcopy(network), self.runtime.generator("decoder").initial_seed())
        resume = state.with_name(f"{state.stem}-decoder.pt")
        fit(looking, train, REBUILDING, self.runtime, hook=Rebuilding(), resume=resume, description="decoder")
        return looking.decoder

    def defend(self, defense: str, data: DefenderData, state: Path, victim: Trained | None) -> Trained:
        """Return the model that a defence leaves; `victim` is what is repaired."""
        if defense == "Trap-and-Replace":
            return self.method.train(self.build, data, self.runtime, state)
        if victim is None:
            return self.plain(data.need_untrusted("plain"), state.parent)
        repaired, history = IBAU().purify(victim.network, data, self.runtime, state)
        return Trained(network=repaired, history=history)


def main() -> None:
    """Do the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--work", type=Path, default=Path("build/trap_and_replace"), help="states of interrupted rows")
    parser.add_argument("--epochs", type=int, default=200, help="of the first stage")
    parser.add_argument("--head-epochs", type=int, default=100, help="of the second stage")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    store, table = (HERE / "results" / f"trap_and_replace.{kind}" for kind in ("jsonl", "md"))
    rows = Rows(store)
    if not arguments.table:
        method = TrapAndReplace(epochs=arguments.epochs, head_epochs=arguments.head_epochs)
        runtime = Runtime(device=arguments.device, threads=arguments.threads, seed=arguments.seed)
        bench = Bench(arguments.data, arguments.work, method, runtime)
        for name in arguments.attacks:
            for defense in DEFENSES:
                if key_of(name, defense, method, arguments.seed) in {_key(row) for row in rows.read()}:
                    continue
                row = bench.run(name, defense)
                done = rows.add(row, row.pop("cost"))
                print(name, defense, f"{done['seconds']} s", flush=True)
                table.write_text(written(rows.read()))
    table.write_text(written(rows.read()))
    print(table)


def key_of(name: str, defense: str, method: TrapAndReplace, seed: int) -> tuple[Any, ...]:
    """Return what tells a row from the others; the schedule counts where it is followed, by defender or attacker."""
    followed = defense == DEFENSES[-1] or name in BAITED
    schedule = (method.epochs, method.head_epochs) if followed else None
    return name, defense, schedule, str(seed)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    method = replace(TrapAndReplace(), **{one: row["options"][one] for one in ("epochs", "head_epochs")})
    return key_of(row["attack"], row["defense"], method, row["seed"])


def written(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown: the aim, means of each defence, then every row."""
    lines = [
        "# Trap-and-Replace",
        "",
        f"Made by `python benchmarks/trap_and_replace.py`: CIFAR-10, WRN16x1 of width 16, {CLEAN} clean images that are"
        " not among the untrusted ones, of which 5,000 are poisoned, and by the clean-label attacks (SIG, clean-label)"
        " all of the target class. ASR of test images that are not of the target class, MSE of the decoder on all"
        " clean and on those triggered images; intervals: 95 %. A network that was trained without a decoder gets one"
        f" for this, which learns {REBUILDING.epochs} epochs of the same images while the stem is frozen. Means are"
        " over attacks, each the mean over its seeds."
        " The adaptive attack is our own design; where it is called baited, its trigger was searched in a model that"
        " the attacker trained by Trap-and-Replace, of the schedule in the table.",
        "",
        *machines(list(rows)),
        "",
        *_aims(rows),
        "",
        *_means(rows),
        "",
        "| attack | defence | seed | schedule | ACC % | ASR % | MSE clean | MSE triggered | seconds | CPU seconds |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|",
        *_lines(rows),
    ]
    return "\n".join(lines) + "\n"


def _schedule(row: dict[str, Any]) -> str:
    """Return the epochs of a row: of both stages if the method trained it, else of the plain training.

    Those of an attacker's model are said too.
    """
    options = row["options"]
    method = f"{options['epochs']} + {options['head_epochs']}"
    own = method if row["defense"] == DEFENSES[-1] else str(row["recipe"]["epochs"])
    return f"{own}, attacker {method}" if row["attack"] in BAITED else own


def _of(rows: Sequence[dict[str, Any]], attacks: Collection[str]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Yield defence, schedule and flat rows of those on some attacks."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["attack"] in attacks:
            flat = {
                "attack": row["attack"],
                "seed": row["seed"],
                **{name: row[name]["value"] for name in ("acc", "asr")},
                **({f"mse_{kind}": row["mse"][kind]["value"] for kind in ERRORS} if row["mse"] else {}),
            }
            found.setdefault((row["defense"], _schedule(row)), []).append(flat)
    for defense, schedule in sorted(found, key=lambda one: (DEFENSES.index(one[0]), one[1])):
        yield defense, schedule, found[defense, schedule]


def _aims(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield what was to be reached, beside what was; with attacks or seeds left out, nothing is judged."""
    yield "| schedule | figure | attacks | at most % | reached % | yes |"
    yield "|---|---|---:|---:|---:|---|"
    for defense, schedule, mine in _of(rows, PAPER):
        value, count = mean(mine, "asr"), len({row["attack"] for row in mine})
        if defense == DEFENSES[-1] and value is not None:
            whole = all_measured(mine, len(PAPER), SEEDS)
            reached = ("yes" if value <= MOST else "no") if whole else "not all measured"
            figures = f"{count} of {len(PAPER)} | {100 * MOST:g} | {percent(value)} | {reached}"
            yield f"| {schedule} | ASR of {defense}, mean over the paper's attacks | {figures} |"


def _means(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each defence, schedule and kind of attack."""
    yield "| attacks | defence | schedule | done | seeds | ACC % | ASR % | worst ASR % | MSE clean | MSE triggered |"
    yield "|---|---|---|---:|---:|---:|---:|---|---:|---:|"
    for kind, attacks in (("the paper's", PAPER), ("adaptive", ADAPTIVE), ("adaptive, baited", BAITED)):
        for defense, schedule, mine in _of(rows, attacks):
            names = sorted({row["attack"] for row in mine})
            seeds = len({row["seed"] for row in mine})
            means = {name: statistics.mean(row["asr"] for row in mine if row["attack"] == name) for name in names}
            worst = max(names, key=lambda name: means[name])
            fields = [kind, defense, schedule, f"{len(names)} of {len(attacks)}", str(seeds)]
            fields += [percent(mean(mine, "acc")), percent(mean(mine, "asr")), f"{percent(means[worst])} ({worst})"]
            fields += [error(mean(mine, f"mse_{kind}")) for kind in ERRORS]
            yield f"| {' | '.join(fields)} |"


def _lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    def place(row: dict[str, Any]) -> tuple[int, int, str]:
        return list(ATTACKS).index(row["attack"]), DEFENSES.index(row["defense"]), row["seed"]

    for row in sorted(rows, key=place):
        errors = [f"{row['mse'][kind]['value']:.5f}" if row["mse"] else "" for kind in ERRORS]
        fields = [row["attack"], row["defense"], row["seed"], _schedule(row), share(row["acc"]), share(row["asr"])]
        # The clock of a resumed row knows its last part only.
        clocks = ["resumed" if row["resumed"] else f"{row[clock]:.0f}" for clock in ("seconds", "cpu_seconds")]
        yield f"| {' | '.join([*fields, *errors, *clocks])} |"


if __name__ == "__main__":
    main()
