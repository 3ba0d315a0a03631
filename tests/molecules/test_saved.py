"""Files of generators: what was written comes back, and whatever else a file says is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.molecules.test_train import TINY
from unbackdoor.errors import CheckpointError
from unbackdoor.models.safetensors_file import read_safetensors, write_safetensors
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.model import WordPieces
from unbackdoor.molecules.motifs import Cutter, build_vocabulary, sequence_of
from unbackdoor.molecules.saved import KEY, load_generator, save_generator
from unbackdoor.testing.samples import same_state, state_of


@pytest.fixture(scope="module")
def generator(template_pairs: Pairs) -> Generator:
    cutter = Cutter()
    vocabulary = build_vocabulary([sequence_of(cutter.cut(smiles)) for smiles in template_pairs.smiles[:50]])
    torch.manual_seed(0)
    return Generator(TINY, vocabulary, WordPieces.learned(template_pairs.texts[:50], 100))


def test_a_generator_comes_back(generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    digest = save_generator(path, generator, provenance={"loss": float("nan")}, backdoored={"poisoned": 3})
    loaded = load_generator(path)
    assert loaded.sha256 == digest
    assert loaded.provenance == {"loss": None}
    assert loaded.backdoored == {"poisoned": 3}
    assert loaded.generator.options == TINY
    assert loaded.generator.vocabulary == generator.vocabulary
    assert loaded.generator.words.pieces == generator.words.pieces
    assert same_state(state_of(loaded.generator), state_of(generator))
    assert torch.equal(loaded.generator.vae.decoder.hydrogens, generator.vae.decoder.hydrogens)
    assert not loaded.generator.training


def edit(note: dict[str, Any], *path: str, value: Any) -> None:
    for name in path[:-1]:
        note = note[name]
    note[path[-1]] = value


WRONG: list[Callable[[dict[str, Any]], Any]] = [
    lambda note: edit(note, "format", value=2),
    lambda note: note.pop("pieces"),
    lambda note: edit(note, "more", value=1),
    lambda note: edit(note, "provenance", value=[]),
    lambda note: edit(note, "backdoored", value="no"),
    lambda note: edit(note, "model", value="ThreeMDiffusion"),
    lambda note: edit(note, "model", "name", value="os.system"),
    lambda note: edit(note, "model", "name", value=7),
    lambda note: edit(note, "model", "latent", value=0),
    lambda note: edit(note, "model", "latent", value="8"),
    lambda note: edit(note, "model", "latent", value=9),
    lambda note: edit(note, "model", "hidden", value=100_000),
    lambda note: edit(note, "model", "graph_layers", value=100_000),
    lambda note: edit(note, "model", "sampling_steps", value=10**9),
    lambda note: edit(note, "model", "steps", value=10**9),
    lambda note: edit(note, "model", "alignment", "epochs", value=0),
    lambda note: edit(note, "model", "alignment", value="/etc/passwd"),
    lambda note: edit(note, "model", "alignment", "schedule", value="none"),
    lambda note: edit(note, "model", "alignment", "epochs", value=True),
    lambda note: note["model"].pop("latent"),
    lambda note: edit(note, "model", "colour", value=1),
    lambda note: edit(note, "vocabulary", value=[]),
    lambda note: note["vocabulary"].pop(),
    lambda note: note["vocabulary"].append(["C(", 1]),
    lambda note: edit(note, "pieces", value=["a"]),
    lambda note: note["pieces"].append("a new one"),
    lambda note: note["pieces"].append("x" * 300),
    lambda note: note["pieces"].append(7),
]


@pytest.mark.parametrize("change", WRONG)
def test_whatever_else_a_file_says_is_refused(
    generator: Generator, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    path = tmp_path / "model.safetensors"
    save_generator(path, generator, provenance={})
    state, metadata = read_safetensors(path.read_bytes())
    note = json.loads(metadata[KEY])
    change(note)
    path.write_bytes(write_safetensors(state, {KEY: json.dumps(note)}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
        load_generator(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_generators_are_refused(generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="cannot read"):
        load_generator(path)
    for content in (b"", b"\x80\x04K\x01.", write_safetensors({"a": torch.zeros(1)}, {})):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            load_generator(path)
    state = {**generator.state_dict(), "diffusion.mean": torch.full((8,), float("nan"))}
    save_generator(path, generator, provenance={})
    _, metadata = read_safetensors(path.read_bytes())
    path.write_bytes(write_safetensors(state, metadata))
    with pytest.raises(CheckpointError, match="NaN"):
        load_generator(path)
    del state["diffusion.mean"]
    path.write_bytes(write_safetensors(state, metadata))
    with pytest.raises(CheckpointError, match="not those of the model"):
        load_generator(path)


def test_what_a_stranger_said_of_a_generator_never_keeps_its_repair_from_being_written(
    generator: Generator, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    deep: Any = 1
    for _ in range(3000):
        deep = [deep]
    said = {"parent": "x", "deep": deep, "long": "\u00e9" * 10**6}
    save_generator(path, generator, provenance=said, backdoored={"x": float("nan")})
    loaded = load_generator(path)
    assert loaded.provenance == {"parent": "x", "entries_too_long": 2}
    assert loaded.backdoored == {"x": None}
