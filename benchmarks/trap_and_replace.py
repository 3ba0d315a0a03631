"""Trap-and-Replace on the attacks of its paper and on the adaptive one, beside no defence and I-BAU.

Writes one line of JSON a finished row to results/trap_and_replace.jsonl and the table results/trap_and_replace.md. A
finished row is not done again, and an interrupted training goes on.

    python benchmarks/trap_and_replace.py --epochs 60          # the paper's schedule has 200
    python benchmarks/trap_and_replace.py --table              # only write the table
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from record import HERE, Rows, machines, measured, share

from unbackdoor.attacks import AdaptiveTrap, Attack, BadNets, Blended, Invisible, LabelConsistent, Smooth, TrojanNN
from unbackdoor.commands.reconstructed import reconstruction_of
from unbackdoor.data import DefenderData, balanced_rows, read_images
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network, WRN16x1
from unbackdoor.options import options_of
from unbackdoor.purify import IBAU
from unbackdoor.secure import Trained, TrapAndReplace
from unbackdoor.training import Recipe, Runtime, fit, new_network
from unbackdoor.training.resume import states

CLEAN = 2500
"""Images held out, which are never poisoned and never trained on as untrusted ones: 5 % of CIFAR-10."""

ATTACKS: dict[str, Attack] = {
    "square": BadNets(size=4, margin=1, spare_target=True),
    "grid": BadNets(patch="grid", spare_target=True),
    "Trojan, 8 x 8": TrojanNN(shape="square", spare_target=True),
    "Trojan, watermark": TrojanNN(shape="watermark", spare_target=True),
    "l2-invisible": Invisible(norm="l2", spare_target=True),
    "l0-invisible": Invisible(norm="l0", spare_target=True),
    "blend": Blended(pattern="cartoon", spare_target=True),
    "smooth": Smooth(spare_target=True),
    "SIG": Blended(pattern="stripes", labels="clean", poison_rate=0.095),
    "clean-label": LabelConsistent(patch="grid", poison_rate=0.095),
    "adaptive, l2": AdaptiveTrap(norm="l2", spare_target=True),
    "adaptive, l0": AdaptiveTrap(norm="l0", spare_target=True),
}
"""Those of the paper as far as there are (see docs/methods/trap-and-replace.md), and our own adaptive one."""

DEFENSES = ("none", "I-BAU", "Trap-and-Replace")


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
        folder = self.work / f"{name}-{self.runtime.seed}".replace(" ", "")
        folder.mkdir(parents=True, exist_ok=True)
        fitted = ATTACKS[name].prepare(self.train, self.build, self.runtime, folder)
        data = DefenderData(untrusted=fitted.train, clean=self.clean)
        # A schedule that was another is another run.
        schedule = f"-{self.method.epochs}-{self.method.head_epochs}" if defense == DEFENSES[-1] else ""
        state = folder / f"{defense}{schedule}.pt"
        resumed = bool(states(state))
        with measured() as cost:
            trained = self.defend(defense, data, state)
        row: dict[str, Any] = {**self.runtime.describe(), "attack": name, "defense": defense, "resumed": resumed}
        row |= {"options": options_of(self.method), "recipe": options_of(Recipe())}
        trigger, criterion = fitted.trigger, fitted.criterion
        row |= evaluate(trained.network, self.test, self.runtime, trigger, criterion).to_json()
        decoder = trained.parts.get("decoder")
        rebuilt = reconstruction_of(trained.network, decoder, self.test, self.runtime, trigger, criterion)
        return {**row, "mse": None if rebuilt is None else rebuilt.to_json(), "cost": cost}

    def build(self) -> Network:
        """Return an untrained network."""
        return new_network(partial(WRN16x1), self.train, self.runtime)

    def defend(self, defense: str, data: DefenderData, state: Path) -> Trained:
        """Return the model that a defence leaves."""
        if defense == "Trap-and-Replace":
            return self.method.train(self.build, data, self.runtime, state)
        network = self.build()
        plain = fit(network, data.need_untrusted("plain"), Recipe(), self.runtime, resume=state.with_stem("none"))
        if defense == "none":
            return Trained(network=network, history=plain)
        repaired, history = IBAU().purify(network, data, self.runtime, state)
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
    """Return what tells a row from the others; the schedule counts where it is followed."""
    schedule = (method.epochs, method.head_epochs) if defense == "Trap-and-Replace" else None
    return name, defense, schedule, str(seed)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    method = replace(TrapAndReplace(), **{one: row["options"][one] for one in ("epochs", "head_epochs")})
    return key_of(row["attack"], row["defense"], method, row["seed"])


def written(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "# Trap-and-Replace",
        "",
        f"Made by `python benchmarks/trap_and_replace.py`: CIFAR-10, WRN16x1 of width 16, {CLEAN} clean images that are"
        " not among the untrusted ones. ASR of test images that are not of the target class, MSE of the decoder on all"
        " clean and on those triggered images; intervals: 95 %. The adaptive attack is our own design.",
        "",
        *machines(rows),
        "",
        "| attack | defence | seed | epochs | ACC % | ASR % | MSE clean | MSE triggered | seconds | CPU seconds |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *_lines(rows),
    ]
    return "\n".join(lines) + "\n"


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    def place(row: dict[str, Any]) -> tuple[int, int, str]:
        return list(ATTACKS).index(row["attack"]), DEFENSES.index(row["defense"]), row["seed"]

    for row in sorted(rows, key=place):
        epochs = row["options"]["epochs"] if row["defense"] == "Trap-and-Replace" else row["recipe"]["epochs"]
        errors = [f"{row['mse'][kind]['value']:.5f}" if row["mse"] else "" for kind in ("clean", "triggered")]
        fields = [row["attack"], row["defense"], row["seed"], str(epochs), share(row["acc"]), share(row["asr"])]
        # The clock of a resumed row knows its last part only.
        clocks = ["resumed" if row["resumed"] else f"{row[clock]:.0f}" for clock in ("seconds", "cpu_seconds")]
        yield f"| {' | '.join([*fields, *errors, *clocks])} |"


if __name__ == "__main__":
    main()
