"""FCT beside a plain one that takes the steps of the authors' program (see `naive/fct.py`): end to end, and scoring.

On rows of CIFAR-10 with a tenth of BadNets, from the same untrained network, in turns, each run in a process of its
own:

    python benchmarks/sifters_speed.py --data ../shared/data/cifar10          # half an hour on two cores
    python benchmarks/sifters_speed.py --rows 2000 --seeds 0                  # a look
    python benchmarks/sifters_speed.py --table                                # only write the table

Writes one line of JSON a turn to results/sifters_speed.jsonl and the table results/sifters_speed.md. Reading the data,
poisoning them and judging the scores are on no clock.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from naive import fct as naive
from record import HERE, Rows, machines, measured

from unbackdoor.attacks import BadNets, FittedAttack
from unbackdoor.bench.worker import Device, forget_peaks, peaks
from unbackdoor.data import DefenderData, ImageSet, read_images
from unbackdoor.detection import auroc
from unbackdoor.sift import FCT
from unbackdoor.sift.fct import FIRST_STEP
from unbackdoor.sift.observed import Observed
from unbackdoor.sift.quick_model import LEAST_STEPS, NETWORK
from unbackdoor.training import Runtime, enough_epochs, new_network

SEEDS = (0, 1, 2)
METHOD = FCT()
AIMS = {"end to end": 5.0, "scoring": 10.0}
"""How many times as fast ours is to be."""


def run(plain: bool, seed: int, fitted: FittedAttack, device: Device, threads: int) -> dict[str, Any]:
    """Sift once, end to end, and measure; called in a process of its own.

    Args:
        plain: whether the plain one runs.
        seed: of everything that is drawn.
        fitted: the poisoned rows.
        device: to compute on.
        threads: of the processor.
    """
    runtime = Runtime(device=device, threads=threads, seed=seed)
    told, rows = runtime.describe(), fitted.train
    # What libraries do at their first call is on no clock.
    new_network(NETWORK, rows, runtime).to(runtime.place)(rows.images[:8].float().to(runtime.place) / 255)
    forget_peaks()
    with measured() as cost:
        found = _plainly(rows, runtime) if plain else _ours(rows, runtime)
    poisoned = fitted.kinds > 0
    scores = found.pop("scores")
    return {
        **found,
        **cost.to_metrics(),
        **peaks(),
        "auroc": auroc(scores[poisoned], scores[~poisoned]).value,
        "machine": told,
    }


def _plainly(rows: ImageSet, runtime: Runtime) -> dict[str, Any]:
    build = partial(new_network, NETWORK, rows, runtime)
    epochs = enough_epochs(FIRST_STEP, len(rows), LEAST_STEPS).epochs
    scored = naive.sift(METHOD, build, rows, epochs, runtime.seed, runtime.place)
    return {"scores": scored.scores, "epochs": METHOD.epochs, **scored.seconds}


def _ours(rows: ImageSet, runtime: Runtime) -> dict[str, Any]:
    answer = METHOD.score(DefenderData(untrusted=rows), runtime)
    # The first spread is that before any epoch.
    return {"scores": answer.scores, "epochs": len(answer.evidence["spreads"]) - 1}


def score(seed: int, fitted: FittedAttack, device: Device, threads: int) -> dict[str, Any]:
    """Time the scoring passes of both on one and the same model; called in a process of its own.

    Args:
        seed: of everything that is drawn.
        fitted: the poisoned rows.
        device: to compute on.
        threads: of the processor.
    """
    runtime, rows = Runtime(device=device, threads=threads, seed=seed), fitted.train
    model = METHOD.learn(rows, runtime, None)
    seen = Observed(model, rows, None, runtime)
    # Both compute the features of the unchanged images too.
    with measured() as ours:
        scores, _ = METHOD.measure(seen, seen.model)
    plain = model.float().to(runtime.place, memory_format=torch.contiguous_format)
    with measured() as theirs:
        others = naive.score(METHOD, plain, rows, naive.turns(rows, seed), runtime.place)
    agreement = torch.corrcoef(torch.stack([scores.argsort().argsort().double(), others.argsort().argsort().double()]))
    return {"ours": ours.to_metrics(), "naive": theirs.to_metrics(), "rank correlation": float(agreement[0, 1])}


def main() -> None:
    """Measure the turns that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    name = "sifters_speed" if arguments.device == "cpu" else f"sifters_speed_{arguments.device}"
    store, table = Rows(HERE / "results" / f"{name}.jsonl"), HERE / "results" / f"{name}.md"
    if not arguments.table:
        train = read_images(arguments.data, "train")
        done = {(row["rows"], row["seed"]) for row in store.read()}
        for seed in arguments.seeds:
            if (arguments.rows, seed) not in done:
                store.append(turn(train, arguments.rows, seed, arguments.device, arguments.threads))
                print("seed", seed, flush=True)
                table.write_text(written(store.read()))
    table.write_text(written(store.read()))
    print(table)


def turn(train: ImageSet, rows: int, seed: int, device: Device, threads: int) -> dict[str, Any]:
    """Measure one seed: both end to end, and their scoring on one model; return the row."""
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:rows]
    fitted = BadNets().prepare(train.subset(chosen), _no_model, Runtime(device="cpu", threads=1, seed=seed))
    sides = {"ours": False, "naive": True}
    found = {side: _alone(run, plain, seed, fitted, device, threads) for side, plain in sides.items()}
    machine = found["ours"].pop("machine")
    found["naive"].pop("machine")
    found["scoring"] = _alone(score, seed, fitted, device, threads)
    told = {name: machine[name] for name in ("device", "threads", "unbackdoor", "torch", "python")}
    return {"rows": rows, "seed": seed, **found, **told}


def _no_model() -> Any:
    raise NotImplementedError


def _alone(work: Any, *arguments: Any) -> dict[str, Any]:
    # A process of its own: the peak of memory is this run's alone.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found: dict[str, Any] = pool.submit(work, *arguments).result()
    return found


def written(rows: Sequence[dict[str, Any]]) -> str:
    """Return the turns as Markdown: the ratios, then every turn."""
    lines = [
        "# FCT beside the plain one",
        "",
        "Made by `python benchmarks/sifters_speed.py`. The plain one takes the steps of the authors' program: PIL "
        "images one at a time in float32, ten epochs of pushing classes apart with two passes a step, and scoring "
        f"image by image, with as many rotations a row as ours ({METHOD.draws}; the authors draw one). Ours is in "
        "bf16 but for the cosines, and ends pushing apart after two epochs without progress; in the column *as many"
        " epochs* the plain one is charged only as many as ours took. Scoring is timed once more for both on one "
        "and the same model, one after the other. Figures are medians over turns.",
        "",
        *machines(list(rows)),
        "",
        "| rows | turns | ours, s | plain, s | times as fast | aim | as many epochs | scoring: ours, s | plain, s |"
        " times as fast | aim | rank correlation |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        _summary([row for row in rows if row["rows"] == count]) for count in sorted({row["rows"] for row in rows})
    ]
    lines += [
        "",
        "| rows | seed | who | seconds | CPU seconds | peak MB | epochs apart | learning, s | pushing apart, s |"
        " scoring, s | AUROC % |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        for side in ("ours", "naive"):
            one = row[side]
            parts = [f"{one[part]:.1f}" if part in one else "" for part in ("learning", "pushing apart", "scoring")]
            fields = [
                *(str(row["rows"]), str(row["seed"]), side, f"{one['seconds']:.1f}", f"{one['cpu_seconds']:.1f}"),
                *(f"{one.get('peak_mb', 0):.0f}", str(one["epochs"]), *parts, f"{100 * one['auroc']:.2f}"),
            ]
            lines.append(f"| {' | '.join(fields)} |")
    return "\n".join(lines) + "\n"


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    ours, plain = ([row[side]["seconds"] for row in rows] for side in ("ours", "naive"))
    scoring = [[row["scoring"][side]["seconds"] for row in rows] for side in ("ours", "naive")]
    fields = [
        *(str(rows[0]["rows"]), str(len(rows)), f"{statistics.median(ours):.1f}", f"{statistics.median(plain):.1f}"),
        *(f"{_times(ours, plain):.1f}", f"{AIMS['end to end']:g}"),
        f"{_times(ours, [_alike(row) for row in rows]):.1f}",
        *(f"{statistics.median(side):.2f}" for side in scoring),
        *(f"{_times(*scoring):.1f}", f"{AIMS['scoring']:g}"),
        f"{statistics.median(row['scoring']['rank correlation'] for row in rows):.3f}",
    ]
    return f"| {' | '.join(fields)} |"


def _alike(row: dict[str, Any]) -> float:
    """Return the plain one's seconds with as many epochs of pushing apart as ours."""
    plain = row["naive"]
    return float(plain["seconds"] - plain["pushing apart"] * (1 - row["ours"]["epochs"] / plain["epochs"]))


def _times(ours: Sequence[float], plain: Sequence[float]) -> float:
    return statistics.median(theirs / mine for mine, theirs in zip(ours, plain, strict=True))


if __name__ == "__main__":
    main()
