"""Where a generator of molecules loses Similarity: each link of its chain alone, on the prompts of a test set.

The chain is text to text vector, text vector to latent vector, latent vector to molecule. Beside the whole, this
measures what comes out if a text vector looks up the training molecule of the nearest text vector, or the nearest
training molecule's own vector, which is what the alignment knows; what the auto-encoder makes of the test molecules
themselves, which is what the decoder could write; and the whole with other weights of the text. Writes a line of JSON
and the table results/molecule_links.md; minutes, for a generator that `unbackdoor molecules train` made:

    python benchmarks/molecule_links.py --model runs/clean/model.safetensors --data PAIRS --test TABLE
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from record import HERE, Rows, machines, measured
from torch import Tensor

from unbackdoor.molecules.baselines import by_chance, by_nearest_text
from unbackdoor.molecules.data import Pairs, Reason, checked, choose_pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.metrics import Quality, measure_quality
from unbackdoor.molecules.model import Graphs
from unbackdoor.molecules.saved import load_generator
from unbackdoor.molecules.train import encoded
from unbackdoor.training import Runtime

GUIDANCES = (0.8, 1.0, 1.5, 2.0, 3.0)
ROWS = 256


def links(generator: Generator, train: Pairs, tested: Pairs, samples: int, runtime: Runtime) -> dict[str, Quality]:
    """Return the quality of what comes out of each link, by its name."""
    asked, _ = generator.contexts(tested.texts, runtime)
    known, _ = generator.contexts(train.texts, runtime)
    found = {
        "chance": by_chance(tested.smiles, samples, runtime.seed),
        "nearest text, TF-IDF": by_nearest_text(train, tested.texts),
        "nearest text vector": [[train.smiles[row]] for row in nearest(asked, known)],
        "nearest molecule's vector": [
            [train.smiles[row]] for row in nearest(asked, vectors(generator, train, runtime))
        ],
    }
    mean, _ = encoded(generator.vae, Graphs.of(tested.smiles).to(runtime.place), runtime)
    found["the test molecules through the auto-encoder"] = [
        [smiles] for part in torch.split(mean, ROWS) for smiles in generator.vae.decoder.write(part)
    ]
    for guidance in GUIDANCES:
        drawn = generator.draw(tested.texts, samples, runtime, guidance)
        found[f"the whole, guidance {guidance:g}"] = [list(one) for one in drawn.smiles]
    return {name: measure_quality(made, tested.smiles) for name, made in found.items()}


@torch.no_grad()
def vectors(generator: Generator, pairs: Pairs, runtime: Runtime) -> Float[Tensor, "n p"]:
    """Return the alignment's vectors of molecules."""
    generator.eval()
    graphs = Graphs.of(pairs.smiles).to(runtime.place)
    rows = torch.split(torch.arange(len(graphs), device=runtime.place), ROWS)
    return torch.cat([generator.aligned.graph(graphs.rows(part)).float() for part in rows])


def nearest(asked: Float[Tensor, "n p"], known: Float[Tensor, "m p"]) -> list[int]:
    """Return for each vector the row of the known one with the largest cosine."""
    known = F.normalize(known, dim=1)
    return [row for part in torch.split(F.normalize(asked, dim=1), ROWS) for row in (part @ known.T).argmax(1).tolist()]


def main() -> None:
    """Measure the links of one generator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="of `unbackdoor molecules train`")
    parser.add_argument("--data", required=True, help="what it was trained on, separated by commas")
    parser.add_argument("--test", help="table whose test split is tested with")
    parser.add_argument("--name", default="", help="of the generator, for the table")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the rows and of the table")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    runtime = Runtime(device=arguments.device, threads=arguments.threads)
    loaded = load_generator(arguments.model)
    chosen = choose_pairs(arguments.data.split(","), arguments.test)
    # What cannot be learned, such as a salt, the auto-encoder cannot be asked for.
    tested = chosen.test.where(lambda smiles: not isinstance(checked(smiles), Reason))
    with measured() as cost:
        found = links(loaded.generator.to(runtime.place), chosen.train, tested, arguments.samples, runtime)
    rows = Rows(arguments.results / "molecule_links.jsonl")
    row = {
        **runtime.describe(),
        "name": arguments.name or arguments.model.parent.name,
        "test": tested.name,
        "prompts": len(tested),
    }
    rows.add({**row, "links": {name: quality.to_json() for name, quality in found.items()}}, cost)
    table = arguments.results / "molecule_links.md"
    table.write_text(written(rows.read()))
    print(table.read_text())


def written(done: list[dict[str, Any]]) -> str:
    """Return all generators as Markdown."""
    lines = [
        "# Where generators of molecules lose Similarity",
        "",
        "Made by `python benchmarks/molecule_links.py`. Similarity, Novelty, and the mean cosine of MACCS keys, in"
        " percent; intervals: 95 % by drawing prompts again.",
        "",
        *machines(done),
    ]
    for row in done:
        lines += ["", f"## {row['name']}, {row['prompts']:,} prompts of {row['test']}", ""]
        lines += ["| link | Similarity | Novelty | mean cosine |", "|---|---:|---:|---:|"]
        for name, quality in row["links"].items():
            shares = [quality[one] for one in ("similarity", "novelty", "mean_cosine")]
            told = ["" if one is None else f"{100 * one['value']:.1f}" for one in shares]
            told[0] += f" [{100 * shares[0]['low']:.1f}, {100 * shares[0]['high']:.1f}]"
            lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
