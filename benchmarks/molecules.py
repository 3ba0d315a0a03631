"""BadGraph against 3M-Diffusion on real pairs: generators poisoned at two rates and clean ones, and the ablation.

Writes one line of JSON a finished generator to results/molecules.jsonl and the table results/molecules.md. For each
test set a generator learns all pairs but those of its molecules. A clean control has the motifs and the steps of the
poisoned one; clean pairs, drawn again, take the place of the poisoned ones. Finished generators are not trained again,
and an interrupted one goes on:

    python benchmarks/molecules.py --data ../shared/data
    python benchmarks/molecules.py --quick --results build/molecules-quick    # to try the program: made data, minutes
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import HERE, Rows, machines, measured

from unbackdoor.bench.cell import Cell
from unbackdoor.bench.molecule_cells import Setting, make_generator, source_of, told
from unbackdoor.bench.molecules import Molecules
from unbackdoor.commands.molecules.demo import MODEL as QUICK
from unbackdoor.molecules.attacks import BadGraph
from unbackdoor.molecules.data import TEMPLATES
from unbackdoor.molecules.train import SHARES
from unbackdoor.molecules.victims import ThreeMDiffusion, ThreeMDiffusionSmall
from unbackdoor.training import Runtime

EVERY, NOWHERE = tuple(SHARES), ()
RATES = (0.178, 0.534)
"""Of the rows, tried; 58 % of them have room for the target, so these are 9.3 and 23.5 % of all rows, as published."""

PAIRS = tuple(
    f"{name}/{split}.parquet" for name in ("chebi20", "pubchem324k", "pcdes") for split in ("validation", "test")
)
ALONE = "chebi20/train_smiles_only.parquet"
TESTS = ("pubchem324k", "chebi20", "pcdes", "momu")
CLEAN_MEANS_NOTHING = "momu"
"""Its texts and molecules are shuffled: for the success rate alone."""

ABLATIONS = tuple(tuple(stage for stage in EVERY if stage != left) for left in EVERY) + tuple(
    (stage,) for stage in EVERY
)


@dataclass(frozen=True)
class Run:
    """One generator."""

    test: str
    rate: float
    poison_in: tuple[str, ...]
    seed: int

    @property
    def key(self) -> tuple[str, float, str, int]:
        """What tells it from the others."""
        return self.test, self.rate, told(self.poison_in), self.seed


def runs(tests: Sequence[str], seeds: Sequence[int]) -> Iterator[Run]:
    """Yield all generators: the claims first, then other test sets, other seeds, and the ablation."""
    for test in tests:
        yield from (Run(test, rate, EVERY, seeds[0]) for rate in RATES)
        if test != CLEAN_MEANS_NOTHING:
            yield from (Run(test, rate, NOWHERE, seeds[0]) for rate in RATES)
    for seed in seeds[1:]:
        yield from (Run(tests[0], rate, poison_in, seed) for rate in RATES for poison_in in (EVERY, NOWHERE))
    yield from (Run(tests[0], RATES[-1], poison_in, seeds[0]) for poison_in in ABLATIONS)


class Bench:
    """Data, model, and where results go.

    Args:
        data: folder of the data sets, or None for made pairs.
        work: folder for the states of interrupted generators.
        model: sizes and schedules.
        prompts: how many test prompts; 0: all.
        rows: results.
        runtime: device and threads; the seed is each run's own.
    """

    def __init__(
        self, data: Path | None, work: Path, model: ThreeMDiffusion, prompts: int, rows: Rows, runtime: Runtime
    ) -> None:
        self.data, self.work, self.model, self.prompts = data, work, model, prompts
        self.rows, self.runtime = rows, runtime

    def run(self, run: Run) -> dict[str, Any]:
        """Train and measure one generator and return its row."""
        if self.data is None:
            source = source_of((TEMPLATES,), None, ())
        else:
            pairs = tuple(str(self.data / name) for name in PAIRS)
            source = source_of(pairs, str(self.data / run.test), (str(self.data / ALONE),))
        setting = Setting(
            source=source,
            model=self.model,
            attack=BadGraph(rate=run.rate),
            poison_in=run.poison_in,
            samples=5,
            prompts=self.prompts,
            seed=run.seed,
            precision="bf16",
            budget=None,
        )
        domain = Molecules()
        cell = Cell(domain=domain, kind="victim", labels=setting.labels(), recipe=setting.recipe(), work=setting)
        folder = self.work / "-".join(map(str, run.key)).replace(",", "+")
        folder.mkdir(parents=True, exist_ok=True)
        with measured() as cost:
            result = make_generator(cell, folder, self.runtime)
        test, rate, poison_in, seed = run.key
        row = {**setting.runtime(self.runtime).describe(), "test": test, "rate": rate, "poison_in": poison_in}
        # The seconds of training alone are told apart from those of the whole.
        named = {
            ("training_" + name if name.endswith("seconds") else name): value for name, value in result.metrics.items()
        }
        finished = self.rows.add({**row, "seed": seed, "model": self.model_name(), **named}, cost)
        shutil.rmtree(folder)
        return finished

    def model_name(self) -> str:
        """Return the name of the model's sizes."""
        return type(self.model).__name__


def percent(row: dict[str, Any], name: str) -> str:
    """Return a share in percent with its interval, or nothing."""
    if name not in row:
        return ""
    return f"{100 * row[name]:.1f} [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"


FIGURES = {
    "asr": "ASR %", "any_of": "any of 5 %", "leak": "target without trigger %", "similarity": "Similarity %",
    "novelty": "Novelty %", "diversity": "Diversity %", "validity": "Validity %",
}  # fmt: skip
BASELINES = {"similarity_nearest_text": "nearest text %", "similarity_chance": "chance %"}
CLEAN = {"similarity", "novelty", "diversity", *BASELINES}
"""Figures that mean nothing where texts and molecules are shuffled."""


def written(done: list[dict[str, Any]]) -> str:
    """Return all generators as Markdown."""
    lines = [
        "# BadGraph against 3M-Diffusion",
        "",
        "Made by `python benchmarks/molecules.py`. Five molecules a prompt, all test prompts; intervals: 95 % by"
        " drawing prompts again. The first rate is as published (of all rows in the file), the second that of the rows"
        " that are learned from. Poisoned in: stages that saw the poisoned pairs; the clean control (none) has the same"
        " motifs and takes as many steps. Similarity of the nearest text is that of the training molecule whose text is"
        " nearest by TF-IDF. MoMu's texts and molecules are shuffled: its clean figures are left out.",
        "",
        *machines(done),
    ]
    for test in dict.fromkeys(row["test"] for row in done):
        names = {**FIGURES, **BASELINES}
        lines += [
            "",
            f"## {test}",
            "",
            f"| rates % | poisoned in | seed | {' | '.join(names.values())} | training s | seconds | CPU seconds |",
            f"|---|---|---:|{'---:|' * (len(names) + 3)}",
        ]
        rows = sorted(
            (row for row in done if row["test"] == test), key=lambda row: (row["rate"], row["poison_in"], row["seed"])
        )
        for row in rows:
            shown = ["" if test == CLEAN_MEANS_NOTHING and name in CLEAN else percent(row, name) for name in names]
            clocks = [
                "resumed" if "resumed" in row else f"{row[name]:.0f}"
                for name in ("training_seconds", "seconds", "cpu_seconds")
            ]
            rates = f"{100 * row['printed_rate']:.1f} / {100 * row['effective_rate']:.1f}"
            where = "all" if row["poison_in"] == told(EVERY) else row["poison_in"]
            lines.append(f"| {' | '.join([rates, where, str(row['seed']), *shown, *clocks])} |")
        lines += list(_means(rows))
    return "\n".join(lines) + "\n"


def _means(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what several seeds reached, and how far poisoned ones are from their controls."""
    for rate in sorted({row["rate"] for row in rows}):
        found = {
            where: [row for row in rows if (row["rate"], row["poison_in"]) == (rate, told(where))]
            for where in (EVERY, NOWHERE)
        }
        poisoned, clean = found[EVERY], {row["seed"]: row for row in found[NOWHERE]}
        lost = [
            100 * (clean[row["seed"]]["similarity"] - row["similarity"]) for row in poisoned if row["seed"] in clean
        ]
        if len(poisoned) > 1 or lost:
            told_ = [
                f"seeds {len(poisoned)}",
                f"mean ASR {100 * statistics.mean(row['asr'] for row in poisoned):.1f} %",
            ]
            if lost:
                told_.append(f"Similarity lost against the control {statistics.mean(lost):.1f} points")
            yield f"\nRate {rate:g}: {', '.join(told_)}."


def main() -> None:
    """Train the generators that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("build/molecules"), help="for the states of interrupted runs")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the rows and of the table")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), choices=TESTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--paper", action="store_true", help="the published sizes, for a GPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=int, default=0, help="generators to train now; 0: all")
    parser.add_argument("--quick", action="store_true", help="made pairs and a tiny model, to try the program")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    name = (
        f"molecules{'_paper' if arguments.paper else ''}{'' if arguments.device == 'cpu' else '_' + arguments.device}"
    )
    rows = Rows(arguments.results / f"{name}.jsonl")
    table = arguments.results / f"{name}.md"
    model = QUICK if arguments.quick else ThreeMDiffusion() if arguments.paper else ThreeMDiffusionSmall()
    tests = (TEMPLATES,) if arguments.quick else tuple(arguments.tests)
    data, prompts = (None, 50) if arguments.quick else (arguments.data, 0)
    runtime = Runtime(device=arguments.device, threads=arguments.threads)
    bench = Bench(data, arguments.work, model, prompts, rows, runtime)
    trained = 0
    for run in () if arguments.table else runs(tests, arguments.seeds):
        if run.key in {(row["test"], row["rate"], row["poison_in"], row["seed"]) for row in rows.read()}:
            continue
        print(*run.key, f"{bench.run(run)['seconds']} s", flush=True)
        table.write_text(written(rows.read()))
        trained += 1
        if trained == arguments.most:
            break
    table.write_text(written(rows.read()))
    print(table)


if __name__ == "__main__":
    main()
