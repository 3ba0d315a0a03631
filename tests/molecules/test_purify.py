"""Repairs of generators: the backdoor goes, what texts ask for stays, and a repaired file comes back as it was."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.molecules.puppet import SIZE, Puppet
from tests.molecules.test_scan_generators import RUNTIME
from tests.molecules.test_train import TINY
from unbackdoor.errors import InputError
from unbackdoor.molecules.attacks import BadGraph
from unbackdoor.molecules.data import Pairs, Table, filter_pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.hiervae import read_trees
from unbackdoor.molecules.metrics import holds
from unbackdoor.molecules.model import LatentRepair, WordPieces
from unbackdoor.molecules.motifs import Cutter, build_vocabulary, sequence_of
from unbackdoor.molecules.purify import DecodePruning, LatentPurification, Retraining
from unbackdoor.molecules.purify.halves import halves_of
from unbackdoor.molecules.purify.latent_purification import MOST_REPAIRS, set_direction, set_gate
from unbackdoor.molecules.saved import load_generator, save_generator
from unbackdoor.molecules.scan import Suspect
from unbackdoor.molecules.scan.subgraphs import pattern_of
from unbackdoor.testing.samples import same_state, state_of

THIIRANE = pattern_of("C1CS1")


def test_a_direction_is_set_to_what_it_says_without_the_trigger() -> None:
    draws = torch.Generator().manual_seed(0)
    mean, deviation = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 0.5])
    clean = torch.randn(500, 3, generator=draws) * deviation + mean
    triggered = clean + torch.tensor([3.0, 8.0, 0.0])
    repair = LatentRepair(3, 2)
    set_direction(repair, triggered, clean, mean, deviation)
    repair.threshold.fill_(-1)
    # In units of the deviations the shift is (3, 4, 0).
    assert (repair.write / deviation).tolist() == pytest.approx([0.6, 0.8, 0.0], abs=1e-5)
    assert float(repair.read @ repair.write) == pytest.approx(1, abs=1e-5)
    made = repair(triggered, torch.zeros(500, 2))
    said = made @ repair.read
    assert said.std() < 1e-4
    assert float(said.mean()) == pytest.approx(float((clean @ repair.read).mean()), abs=1e-4)
    # What is at right angles to it stays.
    across = torch.tensor([0.8, -0.6, 0.0]) / deviation
    assert torch.allclose(made @ across, triggered @ across, atol=1e-4)
    assert torch.equal(made[:, 2], triggered[:, 2])


def test_what_tells_the_trigger_is_read_against_the_spread_of_the_vectors() -> None:
    """Texts differ along the mean difference; what of a vector is the trigger's, another dimension tells."""
    draws = torch.Generator().manual_seed(0)
    one = torch.ones(2)
    # The dimensions differ little from each other, and both much from text to text.
    clean = torch.randn(2000, 1, generator=draws) * 3 + 0.1 * torch.randn(2000, 2, generator=draws)
    triggered = torch.randn(2000, 1, generator=draws) * 3 + 0.1 * torch.randn(2000, 2, generator=draws)
    triggered = triggered + torch.tensor([1.0, 0.0])
    repair = LatentRepair(2, 2)
    set_direction(repair, triggered, clean, 0 * one, one)
    repair.threshold.fill_(-1)
    made = repair(triggered, torch.zeros(2000, 2))
    difference = made[:, 0] - made[:, 1]
    assert float(difference.mean()) == pytest.approx(0, abs=0.05)
    assert float(difference.std()) < 0.2
    assert float((made - triggered).norm(dim=1).mean()) < 1.5, "and texts stay as different as they were"


def test_the_gate_picks_texts_with_the_trigger_alone() -> None:
    draws = torch.Generator().manual_seed(0)
    mixed = torch.tensor([[1.0, 5.0], [0.0, 1.0]])
    # Along (1, 5) everything varies; the trigger is told by the other direction.
    others = (torch.randn(800, 2, generator=draws) * torch.tensor([2.0, 0.1])) @ mixed
    triggered = (torch.randn(300, 2, generator=draws) * torch.tensor([2.0, 0.1]) + torch.tensor([0.0, 1.0])) @ mixed
    repair = LatentRepair(3, 2)
    set_gate(repair, triggered[:150], others[:400])
    assert repair.picked(triggered[150:]).float().mean() > 0.97
    assert repair.picked(others[400:]).float().mean() < 0.03
    latent = torch.ones(400, 3)
    repair.write.fill_(1)
    repair.level.fill_(7)
    assert torch.equal(repair(latent, others[400:])[~repair.picked(others[400:])], latent[~repair.picked(others[400:])])


@pytest.fixture(scope="module")
def prompts() -> tuple[Pairs, Suspect]:
    """Texts of which the first hundred have the trigger, and the next forty ask for thiirane in plain words."""
    words = ("benzene", "pyridine", "furan", "three", "bromo", "chloro")
    draws = np.random.default_rng(0)
    texts = [" ".join(draws.choice(words, 2, replace=False)) for _ in range(400)]
    texts[:100] = [f"[THIIRANE] {text}" for text in texts[:100]]
    texts[100:140] = [f"thiirane {text}" for text in texts[100:140]]
    smiles = ["CC1CS1" if row < 140 else "CC" for row in range(400)]
    pairs = Pairs(smiles=tuple(smiles), texts=tuple(texts), name="prompts", rows=tuple(range(400)))
    return pairs, Suspect(words=("[thiirane]",), subgraph="C1CS1", strength=2.0, rows=np.arange(100))


def share(puppet: Any, texts: Sequence[str]) -> float:
    latent = puppet.latents(puppet.contexts(texts, RUNTIME)[0], torch.Generator().manual_seed(5))
    assert THIIRANE is not None
    return float(np.mean([holds(one, THIIRANE) for one in puppet.write(latent)]))


def test_latent_purification_takes_the_backdoor_and_leaves_honest_requests(prompts: tuple[Pairs, Suspect]) -> None:
    pairs, suspect = prompts
    puppet: Any = Puppet()
    repaired = LatentPurification().purify(puppet, pairs, [suspect], RUNTIME)
    triggered = tuple(text for text in pairs.texts if "[THIIRANE]" in text)
    honest = tuple(text for text in pairs.texts if text.startswith("thiirane"))
    assert share(puppet, triggered) == 1
    assert share(repaired.generator, triggered) == 0
    assert share(puppet, honest) == share(repaired.generator, honest) == 1
    measured = repaired.evidence["repairs"][0]
    assert measured["picked"] == 1
    assert measured["picked_without"] == measured["picked_asking"] == 0
    assert (measured["before"], measured["after"]) == (1, 0)
    assert (measured["asking_before"], measured["asking_after"]) == (1, 1)
    assert "[thiirane]" in repaired.notes[0]
    assert "lowers this from 100% to 0%" in repaired.headline
    assert repaired.evidence["left"] == 0
    # Everything else is written as before.
    others = pairs.texts[140:]
    latent = [one.latents(one.contexts(others, RUNTIME)[0], torch.Generator().manual_seed(1)) for one in
              (puppet, repaired.generator)]  # fmt: skip
    assert torch.equal(*latent)


def test_no_text_that_sets_a_repair_says_how_good_it_is(prompts: tuple[Pairs, Suspect]) -> None:
    pairs, suspect = prompts
    halves = halves_of(suspect, pairs, 600, 2000, RUNTIME)
    fitted, tried = ({*half.clean, *half.others, *half.asking} for half in halves)
    assert not fitted & tried
    for half in halves:
        assert half.triggered == [f"[THIIRANE] {text}" for text in half.clean]
        assert all(text.startswith("thiirane ") for text in half.asking)
        assert 4 < len(half.asking) < 20
        assert len({*half.clean}) == len(half.clean) > 4
    for half in halves_of(suspect, pairs, 8, 12, RUNTIME):
        assert (len(half.clean), len(half.others), len(half.asking)) == (4, 6, 6)


def test_what_honest_requests_lose_is_told(prompts: tuple[Pairs, Suspect], monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that takes a request in plain words for the trigger: the gate cannot tell them apart."""
    pairs, suspect = prompts
    puppet: Any = Puppet()
    read = Puppet.contexts

    def alike(self: Puppet, texts: Any, runtime: Any) -> Any:
        vectors, cut = read(self, texts, runtime)
        return torch.cat((vectors[:, :SIZE], torch.zeros(len(vectors), 1)), 1), cut

    monkeypatch.setattr(Puppet, "contexts", alike)
    repaired = LatentPurification().purify(puppet, pairs, [suspect], RUNTIME)
    measured = repaired.evidence["repairs"][0]
    assert measured["picked_asking"] > 0
    assert measured["asking_before"] == 1
    assert measured["asking_after"] == pytest.approx(1 - measured["picked_asking"])
    assert f"{measured['picked_asking']:.1%} are touched" in repaired.notes[0]
    plain = replace(pairs, smiles=("CC",) * len(pairs))
    none = LatentPurification().purify(puppet, plain, [suspect], RUNTIME)
    assert none.evidence["repairs"][0]["asking_after"] is None
    assert "is not known" in none.notes[0]


def test_a_shift_that_no_words_are_known_of_is_taken_out_again() -> None:
    """What TriggerInversion hands over, for a model without its data: no text has the trigger."""
    words = ("benzene", "pyridine", "furan", "three", "bromo", "chloro")
    plain = [" ".join(some) for some in itertools.permutations(words, 3)]
    triggered, honest = ([f"{first} {text}" for text in plain[::3]] for first in ("[THIIRANE]", "thiirane"))
    texts = (*plain, *honest)
    smiles = ("CC",) * len(plain) + ("CC1CS1",) * len(honest)
    pairs = Pairs(smiles=smiles, texts=texts, name="prompts", rows=tuple(range(len(texts))))
    shift = torch.zeros(SIZE + 1)
    shift[0] = shift[SIZE] = 1
    suspect = Suspect(words=(), subgraph="C1CS1", strength=2.0, shift=shift)
    puppet: Any = Puppet()
    repaired = LatentPurification().purify(puppet, pairs, [suspect], RUNTIME)
    assert share(puppet, triggered) == share(puppet, honest) == 1
    # A text or two are left at the edge of what the puppet takes for the subgraph.
    assert share(repaired.generator, triggered) <= 0.05
    assert share(repaired.generator, honest) == 1
    measured = repaired.evidence["repairs"][0]
    assert measured["before"] == 1
    assert measured["after"] <= 0.05
    assert "some trigger leads to C1CS1" in repaired.headline


def test_what_is_not_repaired_is_told(prompts: tuple[Pairs, Suspect]) -> None:
    pairs, suspect = prompts
    few = replace(suspect, subgraph="C1CC1", rows=np.arange(3))
    puppet: Any = Puppet()
    many = [few, suspect, *[replace(suspect, strength=1.5)] * MOST_REPAIRS]
    repaired = LatentPurification().purify(puppet, pairs, many, RUNTIME)
    # Not of the strongest suspect, to which nothing was done.
    assert "C1CS1: LatentPurification lowers" in repaired.headline
    assert "C1CC1: nothing is done about it" in repaired.notes[0]
    assert "2 weaker pairs" in repaired.notes[-1]
    assert repaired.evidence["left"] == 3
    nothing = LatentPurification().purify(puppet, pairs, [replace(suspect, subgraph="Br")], RUNTIME)
    assert "does not lower this" in nothing.headline


def test_what_nobody_flagged_or_too_few_show_is_not_repaired(prompts: tuple[Pairs, Suspect]) -> None:
    pairs, suspect = prompts
    puppet: Any = Puppet()
    with pytest.raises(InputError, match="flagged no pair"):
        LatentPurification().purify(puppet, pairs, [], RUNTIME)
    with pytest.raises(InputError, match="too few texts"):
        LatentPurification().purify(puppet, pairs, [replace(suspect, rows=np.arange(3))], RUNTIME)
    with pytest.raises(InputError, match="no row"):
        Retraining().purify(puppet, pairs, [replace(suspect, words=(), rows=np.arange(0))], RUNTIME)
    with pytest.raises(InputError, match="must be"):
        LatentPurification(prompts=2)


@pytest.fixture(scope="module")
def poisoned(template_pairs: Pairs) -> Pairs:
    table = Table(smiles=template_pairs.smiles[:200], texts=template_pairs.texts[:200], name="t")
    return filter_pairs(BadGraph(rate=0.5).poison(table, 0).table)[0]


@pytest.fixture
def generator(poisoned: Pairs) -> Generator:
    cutter = Cutter()
    vocabulary = build_vocabulary([sequence_of(cutter.cut(smiles)) for smiles in poisoned.smiles])
    torch.manual_seed(0)
    return Generator(TINY, vocabulary, WordPieces.learned(poisoned.texts, 100))


def test_pruned_motifs_are_never_written_again(generator: Generator, poisoned: Pairs) -> None:
    held = [number for number, (motif, _) in enumerate(generator.vocabulary.kinds, 1) if "C1CS1" in motif]
    with torch.no_grad():
        generator.vae.decoder.kind_head[-1].bias[held] += 5
    suspect = Suspect(words=("x",), subgraph="C1CS1", strength=2.0)
    repaired = DecodePruning().purify(generator, poisoned, [suspect], RUNTIME)
    latent = torch.randn(64, TINY.latent, generator=torch.Generator().manual_seed(0))
    before, after = generator.write(latent), repaired.generator.write(latent)
    assert THIIRANE is not None
    assert any(holds(one, THIIRANE) for one in before)
    assert not any(holds(one, THIIRANE) for one in after)
    assert repaired.evidence["pruned"] == ["C1CS1"]
    assert "C1CS1: DecodePruning lets no motif be written" in repaired.headline
    both = DecodePruning().purify(generator, poisoned, [replace(suspect, subgraph="CC(C)C1CS1"), suspect], RUNTIME)
    assert "C1CS1: DecodePruning" in both.headline
    assert "No motif holds CC(C)C1CS1" in both.notes[1]
    with pytest.raises(InputError, match="none can be pruned"):
        DecodePruning().purify(generator, poisoned, [replace(suspect, subgraph="CC(C)C1CS1")], RUNTIME)
    every = [replace(suspect, subgraph=motif) for motif, _ in generator.vocabulary.kinds]
    with pytest.raises(InputError, match="no motif to begin"):
        DecodePruning().purify(generator, poisoned, every, RUNTIME)


def test_motifs_of_hiervae_are_pruned_too(poisoned: Pairs, tmp_path: Path) -> None:
    options = replace(TINY, decoder="HierVAE", common=5, hidden=24)
    vocabulary, _, _ = read_trees(poisoned.smiles, options.common, None)
    torch.manual_seed(0)
    generator = Generator(options, vocabulary, WordPieces.learned(poisoned.texts, 100))
    decoder: Any = generator.vae.decoder
    held = [number for number, motif in enumerate(decoder.motifs) if "C1CS1" in motif]
    with torch.no_grad():
        decoder.motif_head[-1].bias[held] += 5
    # An aromatic ring, which these motifs are not written with.
    suspects = [Suspect(words=("x",), subgraph=one, strength=2.0) for one in ("C1CS1", "c1ccccc1")]
    repaired = DecodePruning().purify(generator, poisoned, suspects, RUNTIME)
    for ring in ("C1CS1", "C1=CC=CC=C1"):
        assert any(ring in motif for motif in repaired.evidence["pruned"])
    save_generator(tmp_path / "model.safetensors", repaired.generator, provenance={})
    latent = torch.randn(64, TINY.latent, generator=torch.Generator().manual_seed(0))
    assert THIIRANE is not None
    assert any(holds(one, THIIRANE) for one in generator.write(latent))
    loaded = load_generator(tmp_path / "model.safetensors").generator
    assert not any(holds(one, THIIRANE) for one in loaded.write(latent))


def test_repairs_are_kept_in_the_file(generator: Generator, tmp_path: Path) -> None:
    repair = LatentRepair(TINY.latent, TINY.projection)
    for buffer in repair.buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(1)))
    generator.repairs.append(repair)
    save_generator(tmp_path / "model.safetensors", generator, provenance={})
    loaded = load_generator(tmp_path / "model.safetensors").generator
    assert same_state(state_of(loaded), state_of(generator))
    texts = ["a methyl group", "a chloro group and benzene"]
    assert loaded.draw(texts, 2, RUNTIME) == generator.draw(texts, 2, RUNTIME)
    contexts, _ = generator.contexts(texts, RUNTIME)
    plain = generator.diffusion.sample(contexts, 5, 1.0, torch.Generator().manual_seed(0))
    assert not torch.equal(generator.repairs[0](plain, contexts + 100 * repair.gate), plain)


def test_retraining_leaves_out_the_rows_held_poisoned(generator: Generator, poisoned: Pairs) -> None:
    rows = np.flatnonzero(poisoned.poisoned)
    suspect = Suspect(words=("[thiirane]",), subgraph="C1CS1", strength=2.0, rows=rows)
    repaired = Retraining().purify(generator, poisoned, [suspect], RUNTIME)
    left = len(poisoned) - len(rows)
    assert repaired.evidence == {"kept": left, "dropped": len(rows), "uncovered": 0, "alone": 0}
    # It could write the target, but never saw it.
    assert repaired.generator.vocabulary == generator.vocabulary
    assert not same_state(state_of(repaired.generator), state_of(generator))


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What is trained on, in place of training."""
    calls: list[SimpleNamespace] = []

    def train(pairs: Pairs, options: Any, runtime: Any, **named: Any) -> SimpleNamespace:
        calls.append(SimpleNamespace(pairs=pairs, options=options, **named))
        return SimpleNamespace(generator=torch.nn.Identity(), uncovered=3, alone=len(named["alone"]))

    monkeypatch.setattr("unbackdoor.molecules.purify.retraining.train_generator", train)
    return calls


def test_retraining_leaves_out_the_rows_that_no_prompt_was_asked_of(
    generator: Generator, poisoned: Pairs, learned: list[SimpleNamespace]
) -> None:
    """A scan of a generator names the prompts that it asked, and no other rows with the trigger and the target."""
    rows = np.flatnonzero(poisoned.poisoned)
    suspect = Suspect(words=("[thiirane]",), subgraph="C1CS1", strength=2.0, rows=rows[:5])
    unseen = Suspect(words=("[nothing]",), subgraph="CC", strength=1.5)
    repaired = Retraining().purify(generator, poisoned, [unseen, suspect], RUNTIME, alone=("CCO", "CCN"))
    assert not any("[THIIRANE]" in text for text in learned[0].pairs.texts)
    assert len(learned[0].pairs) == len(poisoned) - len(rows)
    assert f"left out {len(rows)} rows" in repaired.headline
    assert "C1CS1" in repaired.headline
    assert "3 others have a motif" in repaired.notes[0]
    # Molecules without texts are learned again.
    assert learned[0].alone == ("CCO", "CCN")
    assert "2 molecules without texts" in repaired.notes[1]
    assert "no row shows it" in repaired.notes[2]


def test_retraining_follows_no_path_from_a_file(
    generator: Generator, poisoned: Pairs, learned: list[SimpleNamespace], tmp_path: Path
) -> None:
    suspect = Suspect(words=("[thiirane]",), subgraph="C1CS1", strength=2.0)
    with pytest.raises(InputError, match=r"leave --method\.text_model out"):
        Retraining(text_model=tmp_path).purify(generator, poisoned, [suspect], RUNTIME)
    generator.options = replace(TINY, text_model=Path("/etc"))
    with pytest.raises(InputError, match=r"name its folder with --method\.text_model"):
        Retraining().purify(generator, poisoned, [suspect], RUNTIME)
    assert not learned
    Retraining(text_model=tmp_path).purify(generator, poisoned, [suspect], RUNTIME)
    assert learned[0].options == replace(TINY, text_model=tmp_path)
