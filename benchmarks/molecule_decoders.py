"""The two decoders of molecules side by side: molecules read, learned and written a second.

Both learn the same molecules, in rounds that take turns, so that a disturbance of the machine meets both; the median of
the rounds counts. Then both write the molecules of the latent vectors that their own encoders give. A decoder that has
learned little writes small molecules, which takes less time, so atoms a second are compared there. Writes
results/molecule_decoders.json and the table results/molecule_decoders.md; about ten minutes:

    python benchmarks/molecule_decoders.py --data ../shared/data/mol_text_pool
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from record import HERE, machines

from unbackdoor.molecules.data import TEMPLATES, filter_pairs, parse, read_table
from unbackdoor.molecules.decoders import Molecules, new_decoder, read_molecules
from unbackdoor.molecules.model import GraphEncoder, Graphs, MoleculeVAE
from unbackdoor.molecules.victims import ThreeMDiffusion, ThreeMDiffusionSmall
from unbackdoor.training import Runtime

BATCH = 48
WRITTEN = 256
DECODERS = ("motifs", "HierVAE")


@dataclass
class Side:
    """One decoder with its encoder, and what was measured of it."""

    name: str
    vae: MoleculeVAE
    graphs: Graphs
    molecules: Molecules
    optimizer: torch.optim.Optimizer
    read: tuple[float, float]
    """Molecules a second and core that are cut into motifs: met for the first time, and again."""
    learned: list[float] = field(default_factory=list)
    """Molecules a second, round by round."""
    written: list[float] = field(default_factory=list)
    atoms: float = 0.0

    def learn(self, seconds: float, draws: torch.Generator, runtime: Runtime) -> None:
        """Train for some time and note the rate."""
        self.vae.train()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            rows = torch.randint(len(self.graphs), (BATCH,), generator=draws)
            noise = torch.randn(BATCH, self.vae.mean.out_features, generator=draws).to(runtime.place)
            with runtime.autocast():
                loss = self.vae.loss(self.graphs.rows(rows), self.molecules.rows(rows), noise, 0.1)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 20.0)
            self.optimizer.step()
            count += BATCH
        self.learned.append(count / (time.perf_counter() - start))

    @torch.no_grad()
    def write(self, rows: torch.Tensor) -> None:
        """Write the molecules of some rows' latent vectors and note the rate."""
        self.vae.eval()
        mean, _ = self.vae.encode(self.graphs.rows(rows))
        start = time.perf_counter()
        smiles = self.vae.decoder.write(mean)
        self.written.append(len(smiles) / (time.perf_counter() - start))
        found = [parse(one) for one in smiles]
        self.atoms = statistics.mean(one.GetNumAtoms() for one in found if one is not None)


def side(name: str, smiles: list[str], runtime: Runtime) -> Side:
    """Return a decoder that has learned nothing."""
    options: ThreeMDiffusion = replace(ThreeMDiffusionSmall(), decoder=name)  # type: ignore[arg-type]
    rates = []
    for _ in ("first", "again"):
        start = time.perf_counter()
        read = read_molecules(options, smiles)
        # One thread does it, whatever the number of threads.
        rates.append(len(smiles) / (time.perf_counter() - start))
    torch.manual_seed(0)
    vae = MoleculeVAE(
        GraphEncoder(options.graph_layers, options.graph_width, options.projection),
        new_decoder(options, read.vocabulary),
        options.projection,
        options.latent,
        options.hidden,
    ).to(runtime.place)
    graphs = Graphs.of([smiles[row] for row in read.covered]).to(runtime.place)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
    return Side(name, vae, graphs, read.molecules.to(runtime.place), optimizer, (rates[0], rates[1]))


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/mol_text_pool", help="pairs, or templates")
    parser.add_argument("--most", type=int, default=4000, help="molecules")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a round of learning")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the rows and of the table")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    runtime = Runtime(device=arguments.device, threads=arguments.threads)
    pairs, _ = filter_pairs(read_table(arguments.data, "all"))
    smiles = list(dict.fromkeys(pairs.smiles))[: arguments.most]
    sides = [side(name, smiles, runtime) for name in DECODERS]
    draws = torch.Generator().manual_seed(0)
    for number in range(arguments.rounds + 1):
        for one in sides:
            one.learn(arguments.seconds, draws, runtime)
        print(number, {one.name: round(one.learned[-1]) for one in sides}, flush=True)
    rows = torch.randperm(min(len(one.graphs) for one in sides), generator=draws)[:WRITTEN].to(runtime.place)
    for _ in range(arguments.rounds + 1):
        for one in sides:
            one.write(rows)
    told = {**runtime.describe(), "data": TEMPLATES if arguments.data == TEMPLATES else Path(arguments.data).name}
    result = {**told, "molecules": len(smiles), "batch": BATCH, "decoders": {one.name: _told(one) for one in sides}}
    arguments.results.mkdir(parents=True, exist_ok=True)
    name = f"molecule_decoders{'' if arguments.device == 'cpu' else '_' + arguments.device}"
    (arguments.results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.results / f"{name}.md").write_text(written(result))
    print(written(result))


def _told(one: Side) -> dict[str, Any]:
    # The first round of each warms up.
    return {
        "covered": len(one.graphs),
        "read": [round(rate, 1) for rate in one.read],
        "learned": [round(rate, 1) for rate in one.learned[1:]],
        "written": [round(rate, 1) for rate in one.written[1:]],
        "atoms": round(one.atoms, 1),
    }


def written(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        "# The two decoders of molecules",
        "",
        f"Made by `python benchmarks/molecule_decoders.py`: {result['molecules']:,} molecules of {result['data']},"
        f" batches of {result['batch']}, sizes of ThreeMDiffusionSmall, encoder included in learning. Medians of rounds"
        " that take turns; in brackets the slowest and the fastest. Read: molecules that one core cuts into motifs, the"
        " vocabulary included, when they are new and when they are known from before.",
        "",
        *machines([result]),
        "",
        "| decoder | molecules it can write | read/s, new | read/s, known | learned/s | written/s |"
        " atoms of what it wrote | atoms written/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["decoders"].items():
        rates = [
            f"{statistics.median(row[what]):.0f} [{min(row[what]):.0f}, {max(row[what]):.0f}]"
            for what in ("learned", "written")
        ]
        atoms = row["atoms"] * statistics.median(row["written"])
        read = [f"{rate:,.0f}" for rate in row["read"]]
        cells = [name, f"{row['covered']:,}", *read, *rates, f"{row['atoms']}", f"{atoms:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    ours, theirs = (result["decoders"][name] for name in DECODERS)
    times = [statistics.median(ours[what]) / statistics.median(theirs[what]) for what in ("learned", "written")]
    atoms = times[1] * ours["atoms"] / theirs["atoms"]
    lines += [
        "",
        f"The decoder of motifs learns {times[0]:.1f} times as many molecules a second, and writes {times[1]:.1f} times"
        f" as many molecules and {atoms:.1f} times as many atoms: what each of them writes after so little learning is"
        " of another size.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
