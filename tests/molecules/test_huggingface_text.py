"""Text encoders of Hugging Face folders, made here and never fetched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.molecules.test_train import RUNTIME, TINY
from unbackdoor.errors import CheckpointError, DataError, InputError
from unbackdoor.models.safetensors_file import read_safetensors, write_safetensors
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.model import HuggingFaceText, HuggingFaceWords, WordPieces
from unbackdoor.molecules.model.huggingface_text import load_body, read_text_encoder
from unbackdoor.molecules.model.wordpiece import BEGIN
from unbackdoor.molecules.saved import KEY, load_generator, save_generator
from unbackdoor.molecules.train import train_generator
from unbackdoor.testing.samples import same_state, state_of

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(template_pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT, as transformers saves it."""
    path = tmp_path_factory.mktemp("text") / "bert"
    words = WordPieces.learned(template_pairs.texts, 200)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(path)
    words._tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_the_encoder_says_what_transformers_says(folder: Path) -> None:
    words, state = read_text_encoder(folder, 32)
    module = HuggingFaceText(words.config, 8)
    load_body(module, state)
    module.eval()
    original = transformers.BertModel.from_pretrained(folder).eval()
    texts = words.encode(["a methyl group", "an acid"], 32)
    rows = texts.rows(torch.tensor([0, 1]))
    with torch.no_grad():
        alone = original(input_ids=rows[1:2, : int(texts.length[1])]).last_hidden_state[:, 0]
        torch.testing.assert_close(module(rows)[1:2], module.project(alone), rtol=1e-4, atol=1e-5)


def test_old_names_and_prefixes_are_understood(folder: Path, tmp_path: Path) -> None:
    state, _ = read_safetensors((folder / "model.safetensors").read_bytes())
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in state.items()
    }
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(write_safetensors({**old, "cls.bias": torch.zeros(3)}, {}))
    words, renamed = read_text_encoder(tmp_path, 32)
    one, other = HuggingFaceText(words.config, 8), HuggingFaceText(words.config, 8)
    load_body(one, renamed)
    load_body(other, state)
    assert same_state(state_of(one.body), state_of(other.body))


PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "methyl", "##ated", "acid", "an", "An", ".")


def published(folder: Path, to: Path, pieces: tuple[str, ...], **options: Any) -> Path:
    """A folder as SciBERT's: a list of word pieces in place of a tokenizer.json."""
    for name in ("config.json", "model.safetensors"):
        (to / name).write_bytes((folder / name).read_bytes())
    (to / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    if options:
        (to / "tokenizer_config.json").write_text(json.dumps(options))
    return to


@pytest.mark.parametrize(
    ("options", "first"),
    [({}, "an"), ({"do_lower_case": True}, "an"), ({"do_lower_case": False}, "An")],
    ids=["default", "lower-case", "cased"],
)
def test_a_list_of_word_pieces_is_read_as_berts(
    folder: Path, tmp_path: Path, options: dict[str, Any], first: str
) -> None:
    words, _ = read_text_encoder(published(folder, tmp_path, PIECES, **options), 32)
    texts = words.encode(["An acid. methylated quux"], 32)
    expected = ["[CLS]", first, "acid", ".", "methyl", "##ated", "[UNK]", "[SEP]"]
    assert [PIECES[number] for number in texts.pieces[0, : int(texts.length[0])].tolist()] == expected
    # As it is kept in a generator's file.
    again = HuggingFaceWords(words.config, words.json)
    assert torch.equal(again.encode(["an acid"], 32).pieces, words.encode(["an acid"], 32).pieces)


@pytest.mark.parametrize("pieces", [PIECES[2:], (*PIECES, "acid")], ids=["no unknown piece", "a piece twice"])
def test_a_list_of_word_pieces_that_is_none_is_refused(folder: Path, tmp_path: Path, pieces: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"vocab\.txt must name"):
        read_text_encoder(published(folder, tmp_path, pieces), 32)


def test_weights_that_are_a_pickle_are_not_opened_and_the_way_out_is_told(folder: Path, tmp_path: Path) -> None:
    published(folder, tmp_path, PIECES)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="not opened; load it where you trust it and save its weights"):
        read_text_encoder(tmp_path, 32)


def test_a_generator_is_trained_on_it_saved_and_read_without_the_folder(
    folder: Path, template_pairs: Pairs, tmp_path: Path
) -> None:
    options = replace(TINY, text_model=folder)
    trained = train_generator(template_pairs.subset(range(100)), options, RUNTIME)
    save_generator(tmp_path / "model.safetensors", trained.generator, provenance={})
    assert str(folder.parent) not in (tmp_path / "model.safetensors").read_bytes().decode("latin-1")
    loaded = load_generator(tmp_path / "model.safetensors").generator
    assert loaded.options == replace(TINY, text_model=Path("bert"))
    assert same_state(state_of(loaded), state_of(trained.generator))
    prompts = ["a methyl group", "x " * 500]
    assert loaded.draw(prompts, 1, RUNTIME) == trained.generator.draw(prompts, 1, RUNTIME)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"model_type": None},
        {"model_type": []},
        {"num_hidden_layers": 10**6},
        {"vocab_size": 10**9},
        {"vocab_size": 3},
        {"hidden_act": "os.system('x')" * 5},
        {"hidden_size": [32]},
        {"hidden_size": -1},
        {"num_hidden_layers": None},
        {"num_hidden_layers": "many"},
        {"vocab_size": None},
        {"max_position_embeddings": "512"},
        {"pad_token_id": None},
    ],
)
def test_strange_configurations_are_refused(folder: Path, change: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(DataError):
        HuggingFaceWords({**config, **change}, (folder / "tokenizer.json").read_text())


def test_code_that_a_configuration_names_is_left_out(folder: Path) -> None:
    config = {**json.loads((folder / "config.json").read_text()), "auto_map": {"AutoModel": "evil.Evil"}}
    words = HuggingFaceWords(config, (folder / "tokenizer.json").read_text())
    assert "auto_map" not in words.config
    with pytest.raises(DataError, match="tokenizers cannot read"):
        HuggingFaceWords(config, "{}")


def test_folders_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json, tokenizer"):
        read_text_encoder(tmp_path, 32)
    with pytest.raises(InputError, match="reads 62 pieces, fewer than text_pieces"):
        read_text_encoder(folder, 128)
    words, state = read_text_encoder(folder, 32)
    first = next(iter(state))
    with pytest.raises(InputError, match="do not fit"):
        load_body(HuggingFaceText(words.config, 8), {name: one for name, one in state.items() if name != first})
    with pytest.raises(InputError, match="do not fit"):
        load_body(HuggingFaceText(words.config, 8), {**state, first: torch.zeros(3, 3)})


def test_a_model_file_with_another_encoder_than_its_weights_is_refused(
    folder: Path, template_pairs: Pairs, tmp_path: Path
) -> None:
    trained = train_generator(template_pairs.subset(range(40)), replace(TINY, text_model=folder), RUNTIME)
    path = tmp_path / "model.safetensors"
    save_generator(path, trained.generator, provenance={})
    state, metadata = read_safetensors(path.read_bytes())
    for name, value in (("num_hidden_layers", 3), ("hidden_size", 33), ("model_type", "t5")):
        note = json.loads(metadata[KEY])
        note["pieces"]["config"][name] = value
        path.write_bytes(write_safetensors(state, {KEY: json.dumps(note)}))
        with pytest.raises(CheckpointError):
            load_generator(path)


def test_its_tokenizer_tells_what_it_knows_of_a_text(folder: Path) -> None:
    words, _ = read_text_encoder(folder, 32)
    texts = words.encode(["the molecule", "分子", "the xqzxqz"], 32)
    assert texts.unknown[:2] == (0, 1)
    assert texts.familiar == (1, 0, 0.5)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        # Ten times as long by each; a library that panics; and parts inside of others.
        ("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}, "normalizer is Replace"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Replace"}]}, "normalizer is Replace"),
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "pre_tokenizer is FixedLength"),
        ("model", {"type": "Unigram", "vocab": [["a", 0.0]]}, "model is Unigram"),
        ("post_processor", {"type": ["Sequence"]}, "post_processor is"),
    ],
)
def test_a_tokenizer_with_parts_that_are_not_known_is_refused(folder: Path, part: str, value: Any, words: str) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(DataError, match=words):
        HuggingFaceWords(config, json.dumps({**content, part: value}))


def test_a_tokenizer_whose_numbers_the_encoder_does_not_have_is_refused(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    far = {**content, "model": {**content["model"], "vocab": {**vocabulary, last: 5_000_000}}}
    with pytest.raises(DataError, match="more pieces than the text encoder knows"):
        HuggingFaceWords(config, json.dumps(far))
    many = [{"SpecialToken": {"id": BEGIN, "type_id": 0}}] * 200 + [{"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {BEGIN: {"id": BEGIN, "ids": [vocabulary[BEGIN]], "tokens": [BEGIN]}}
    around = {"type": "TemplateProcessing", "single": many, "pair": many, "special_tokens": tokens}
    with pytest.raises(DataError, match="around a text"):
        HuggingFaceWords(config, json.dumps({**content, "post_processor": around}))
