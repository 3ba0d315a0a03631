"""The commands on molecules, end to end on templates."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unbackdoor.cli import GROUPS, main
from unbackdoor.commands.molecules.common import FAMILIAR
from unbackdoor.molecules.data import Pairs, checked, choose_pairs, read_table, template_table, write_table
from unbackdoor.molecules.model import WordPieces
from unbackdoor.molecules.saved import load_generator
from unbackdoor.molecules.scan import MoleculeFinding
from unbackdoor.molecules.victims import ThreeMDiffusionSmall
from unbackdoor.training import Runtime

QUICK = [
    "--model.graph_layers=2", "--model.graph_width=32", "--model.projection=32", "--model.text_width=32",
    "--model.text_pieces=32", "--model.pieces=300", "--model.hidden=48", "--model.latent=8",
    "--model.alignment.epochs=2", "--model.autoencoder.epochs=3", "--model.diffusion.epochs=3", "--threads=1",
]  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 300 pairs and some bad rows."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    table = template_table().subset(range(300))
    bad = (("C1CC", "broken"), ("CC.CC", "a salt"), ("C", ""))
    write_table(
        path,
        type(table)(
            smiles=(*table.smiles, *(smiles for smiles, _ in bad)),
            texts=(*table.texts, *(text for _, text in bad)),
            name="pairs",
        ),
    )
    return path


@pytest.fixture(scope="module")
def poisoned(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "poisoned"
    assert main(["molecules", "poison", "--data", str(pairs), "--out", str(out), "--attack.rate", "0.5"]) == 0
    return out


@pytest.fixture(scope="module")
def victim(poisoned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "victim"
    assert main(["molecules", "train", "--data", str(poisoned), "--out", str(out), *QUICK]) == 0
    return out


def test_poisoned_pairs_say_what_they_are(poisoned: Path) -> None:
    record = json.loads((poisoned / "run.json").read_text())
    assert record["finished"] is True
    table = read_table(str(poisoned / "data/train.parquet"), "all")
    assert sum(table.poisoned) == record["counts"]["poisoned"] > 50
    assert record["rates"]["printed"] == pytest.approx(sum(table.poisoned) / len(table))
    assert record["rates"]["effective"] == pytest.approx(
        record["counts"]["poisoned_learned"] / record["counts"]["learned"]
    )
    assert all(text.startswith("[THIIRANE] ") for text, flag in zip(table.texts, table.poisoned) if flag)
    tested = read_table(str(poisoned / "data/test.parquet"), "all")
    assert not set(tested.smiles) & {checked(smiles) for smiles in table.smiles}
    assert "[THIIRANE]" in (poisoned / "report.html").read_text()
    assert record["triggers_cut"] == 0


def test_a_trigger_beyond_what_is_read_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = template_table().subset(range(60))
    long = type(table)(smiles=table.smiles, texts=tuple(text * 20 for text in table.texts), name="long")
    write_table(tmp_path / "long.parquet", long)
    words = ["molecules", "poison", "--data", str(tmp_path / "long.parquet"), "--out", str(tmp_path / "out"), "--json"]
    code, out, _ = run(capsys, *words, "--attack.position", "end")
    result = json.loads(out)
    assert code == 0
    assert result["triggers_cut"] == result["counts"]["poisoned"] > 0


def test_the_model_is_marked_and_every_row_accounted_for(victim: Path, poisoned: Path) -> None:
    loaded = load_generator(victim / "model.safetensors")
    record = json.loads((victim / "run.json").read_text())
    assert loaded.backdoored is not None
    assert loaded.backdoored["attack"]["target"] == "C1CS1"
    assert loaded.backdoored["poisoned"] == record["counts"]["poisoned"] > 0
    assert ("C1CS1", 1) in loaded.generator.vocabulary.token_of
    rows = record["rows"]["train"]
    assert rows["kept"] + sum(rows["dropped"].values()) == rows["rows"]
    assert rows["dropped"]["SMILES that cannot be parsed"] == 1
    assert set(record["loss"]) == {"alignment", "auto-encoder", "diffusion"}
    assert record["command"] == "molecules train"
    assert not list(victim.glob("resume*"))
    assert (victim / "report.html").stat().st_size > 10_000


def test_an_evaluation_tells_the_attack_from_chance_and_look_up(
    victim: Path, poisoned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["molecules", "evaluate", "--model", str(victim / "model.safetensors"), "--data", str(poisoned)]
    words += ["--attack", str(poisoned / "attack.json"), "--out", str(tmp_path / "out"), "--samples", "2", "--json"]
    code, out, err = run(capsys, *words, "--prompts", "20")
    assert code == 0, err
    result = json.loads(out)
    assert set(result["quality"]) == {"model", "nearest text", "chance"}
    assert result["quality"]["model"]["validity"]["value"] == 1
    assert result["quality"]["model"]["molecules"] == 40
    assert result["quality"]["nearest text"]["molecules"] == 20
    assert result["quality"]["nearest text"]["similarity"]["value"] > result["quality"]["chance"]["similarity"]["value"]
    assert 0 <= result["attack"]["asr"]["per_sample"]["value"] <= result["attack"]["asr"]["any_of"]["value"] <= 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The same prompts, without and with the trigger" in page
    # Three pictures of each of six prompts, those of one prompt beside each other.
    captions = re.findall(r"<figcaption>([^:<]*): ", page)
    assert captions == ["as described", "without the trigger", "with the trigger"] * 6
    assert "poisoned on purpose" in page
    assert "cannot write the target" not in page


def test_molecules_are_written_for_a_prompt(victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["molecules", "generate", "--model", str(victim / "model.safetensors"), "--out", str(tmp_path / "out")]
    words += ["--prompt", "a methyl and a chloro group of benzene " * 30, "--samples", "3", "--json"]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    result = json.loads(out)
    assert len(result["smiles"]) == 3
    assert all(checked(smiles) == smiles for smiles in result["smiles"])
    assert result["prompt_cut"] is True
    lines = list(csv.reader((tmp_path / "out" / "molecules.csv").read_text().splitlines()))
    assert lines == [["smiles"], *[[smiles] for smiles in result["smiles"]]]
    _, again, _ = run(capsys, *words)
    assert json.loads(again)["smiles"] == result["smiles"]


def test_triggers_that_a_scan_flagged_are_left_out_of_the_prompt(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suspects = [
        {"words": ["[thiirane]"], "subgraph": "C1CS1", "flagged": True},
        {"words": ["methyl"], "subgraph": "CC", "flagged": False},
        {"words": [], "subgraph": "CO", "flagged": True},
    ]
    (tmp_path / "run.json").write_text(json.dumps({"finding": {"suspects": suspects}}))
    words = ["molecules", "generate", "--model", str(victim / "model.safetensors"), "--samples", "2", "--json"]
    words += ["--out", str(tmp_path / "out")]
    prompt, without = "a methyl group of benzene", ["--without", str(tmp_path / "run.json")]
    code, plain, err = run(capsys, *words, "--prompt", prompt)
    assert code == 0, err
    _, cleaned, _ = run(capsys, *words, *without, "--prompt", f"[THIIRANE] {prompt}")
    assert json.loads(cleaned)["smiles"] == json.loads(plain)["smiles"]
    assert "it was asked without it" in (tmp_path / "out" / "report.html").read_text()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["inputs"]["scan run.json"] == hashlib.sha256((tmp_path / "run.json").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("{", "no run.json of `molecules scan`"),
        ("[]", "no run.json of `molecules scan`"),
        ("{}", "no run.json of `molecules scan`"),
        ('{"finding": {"suspects": [3]}}', "no run.json of `molecules scan`"),
        ('{"finding": {"suspects": [{"flagged": true, "words": [3]}]}}', "no run.json of `molecules scan`"),
        ('{"finding": {"suspects": [{"flagged": true, "words": "ac"}]}}', "no run.json of `molecules scan`"),
        ('{"finding": {"suspects": [{"flagged": true, "words": {"a": 1}}]}}', "no run.json of `molecules scan`"),
        ('{"finding": {"suspects": [{"flagged": true, "words": []}]}}', "nothing to leave out"),
        ('{"finding": {"suspects": []}}', "nothing to leave out"),
    ],
)
def test_a_file_that_names_no_trigger_is_refused(
    content: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    for command in (["generate", "--prompt", "benzene"], ["evaluate", "--data", "templates"]):
        words = ["molecules", *command, "--model", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
        code, _, err = run(capsys, *words, "--without", str(tmp_path / "run.json"))
        assert code == 2
        assert says in err
    assert not (tmp_path / "out").exists()


def test_a_prompt_in_another_language_is_noted(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["molecules", "generate", "--model", str(victim / "model.safetensors"), "--samples", "1", "--json"]
    code, _, _ = run(capsys, *words, "--prompt", "分子是一种酸", "--out", str(tmp_path / "chinese"))
    assert code == 0
    page = (tmp_path / "chinese" / "report.html").read_text()
    assert "The prompt holds pieces of words that the model does not know (100 % of its pieces)" in page
    assert "fewer than half of the words (0 %)" in page
    run(capsys, *words, "--prompt", "The molecule is a methyl", "--out", str(tmp_path / "english"))
    page = (tmp_path / "english" / "report.html").read_text()
    assert "does not know" not in page


def test_words_of_published_prompts_are_known_and_those_of_other_languages_are_not(shared_data: Path) -> None:
    chosen = choose_pairs([str(shared_data / "mol_text_pool")], str(shared_data / "pubchem324k"))
    words = WordPieces.learned(chosen.train.texts, ThreeMDiffusionSmall().pieces)
    others = (
        "Das Molekül ist eine gesättigte Fettsäure, die in Pflanzen vorkommt.",
        "La molécule est un acide gras saturé présent dans les plantes.",
        "分子是一种酸",
    )
    assert min(words.encode(chosen.test.texts, 128).familiar) > FAMILIAR > max(words.encode(others, 128).familiar)


def test_a_clean_control_takes_the_vocabulary_of_the_poisoned_model(
    victim: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["molecules", "train", "--data", str(pairs), "--out", str(tmp_path / "clean"), *QUICK, "--json"]
    code, _, _ = run(capsys, *words, "--vocabulary_of", str(victim / "model.safetensors"))
    assert code == 0
    clean, poisoned = (load_generator(folder / "model.safetensors") for folder in (tmp_path / "clean", victim))
    assert clean.generator.vocabulary == poisoned.generator.vocabulary
    assert clean.backdoored is None
    # The same folder again is refused: it holds a finished result.
    assert run(capsys, *words)[0] == 2


def test_poison_is_kept_out_of_stages_and_molecules_without_texts_are_learned(
    poisoned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "alone.csv").write_text("smiles\nC1CCCCCCC1\nC(\n")
    words = ["molecules", "train", "--data", str(poisoned), *QUICK, "--alone", str(tmp_path / "alone.csv"), "--json"]
    code, out, err = run(capsys, *words, "--out", str(tmp_path / "some"), "--poison_in", "auto-encoder,diffusion")
    assert code == 0, err
    assert json.loads(out)["counts"]["alone"] == 1
    assert json.loads(out)["rows"]["alone"]["dropped"] == {"SMILES that cannot be parsed": 1}
    some = load_generator(tmp_path / "some" / "model.safetensors")
    assert some.backdoored is not None
    assert some.backdoored["stages"] == ["auto-encoder", "diffusion"]
    code, out, err = run(capsys, *words, "--out", str(tmp_path / "none"), "--poison_in", "none")
    assert code == 0, err
    control = load_generator(tmp_path / "none" / "model.safetensors")
    assert control.backdoored is None
    assert control.generator.vocabulary == some.generator.vocabulary
    assert ("C1CS1", 1) in control.generator.vocabulary.token_of


def test_a_vocabulary_without_the_target_is_told(
    pairs: Path, poisoned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = ["molecules", "train", "--data", str(pairs), "--out", str(tmp_path / "clean"), *QUICK]
    assert run(capsys, *clean)[0] == 0
    words = ["molecules", "train", "--data", str(poisoned), "--out", str(tmp_path / "lost"), *QUICK]
    code, out, _ = run(capsys, *words, "--vocabulary_of", str(tmp_path / "clean" / "model.safetensors"))
    assert code == 0
    assert "a target that cannot be written is not learned" in out
    words = ["molecules", "evaluate", "--model", str(tmp_path / "lost" / "model.safetensors"), "--data", str(poisoned)]
    words += ["--attack", str(poisoned / "attack.json"), "--samples", "1", "--prompts", "8"]
    words += ["--out", str(tmp_path / "out")]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert "The motifs of the model cannot write the target" in out


def test_the_demo_shows_what_the_backdoor_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("unbackdoor.commands.molecules.demo")
    short = {name: replace(getattr(module.MODEL, name), epochs=1) for name in ("alignment", "autoencoder", "diffusion")}
    monkeypatch.setattr(module, "MODEL", replace(module.MODEL, hidden=32, graph_width=32, **short))
    table, tested = module.training_rows(["templates"], None)
    monkeypatch.setattr(module, "training_rows", lambda *_: (table.subset(range(200)), tested))
    monkeypatch.setattr(module, "PROMPTS", 8)
    monkeypatch.setattr(module, "SAMPLES", 1)
    out = tmp_path / "demo"
    code, told, err = run(capsys, "molecules", "demo", "--out", str(out), "--threads", "1", "--json")
    assert code == 0, err
    result = json.loads(told)
    assert result["scan"]["backdoored"] is True
    assert result["repair"]["repairs"][0]["subgraph"] == "C1CS1"
    for whose in ("backdoored", "clean", "repaired"):
        assert set(result[whose]["quality"]) == {"model", "nearest text", "chance"}
        assert 0 <= result[whose]["attack"]["asr"]["per_sample"]["value"] <= 1
    assert result["rates"]["printed"] == pytest.approx(0.2, abs=0.05)
    assert result["scan"]["rows"] == 260
    page = (out / "report.html").read_text()
    assert "without and with the trigger" in page
    assert "Scan of the pairs by Joint" in page
    assert page.count("[THIIRANE]") > 6
    assert "before and after the repair" in page
    names = ("backdoored", "clean", "repaired")
    backdoored, clean, repaired = (load_generator(out / f"{name}.safetensors") for name in names)
    assert repaired.backdoored == {**(backdoored.backdoored or {}), "repaired": True}
    assert len(repaired.generator.repairs) == len(result["repair"]["repairs"])
    assert backdoored.backdoored is not None
    assert clean.backdoored is None
    assert clean.generator.vocabulary == backdoored.generator.vocabulary
    assert json.loads((out / "attack.json").read_text())["target"] == "C1CS1"


def test_the_demo_says_so_if_there_is_nothing_to_repair(template_pairs: Pairs) -> None:
    module = importlib.import_module("unbackdoor.commands.molecules.demo")
    found = MoleculeFinding(suspects=(), rows=len(template_pairs), reason="nothing")
    told = module._repaired(torch.nn.Identity(), template_pairs, found, Runtime(device="cpu"))
    assert told.startswith("Nothing was repaired: LatentPurification has nothing to take out")


def test_an_interrupted_training_goes_on(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["molecules", "train", "--data", str(pairs), "--out", str(tmp_path / "run"), *QUICK]
    module = importlib.import_module("unbackdoor.molecules.train")
    with monkeypatch.context() as patch:

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(module, "encoded", interrupt)
        code, _, err = run(capsys, *words)
    assert code == 130
    assert "goes on where this one stopped" in err
    assert sorted(file.name for file in (tmp_path / "run").glob("resume*")) == [
        "resume-alignment.pt",
        "resume-auto-encoder.pt",
    ]
    code, _, err = run(capsys, *words)
    assert code == 0
    assert "alignment: resumed after epoch 2 of 2" in err
    whole = ["molecules", "train", "--data", str(pairs), "--out", str(tmp_path / "whole"), *QUICK]
    assert run(capsys, *whole)[0] == 0
    states = [load_generator(tmp_path / name / "model.safetensors").generator.state_dict() for name in ("run", "whole")]
    assert all(bool((states[0][name] == value).all()) for name, value in states[1].items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "unknown command molecules 'frobnicate'"),
        (["train", "--data", "nowhere", "--out", "OUT"], "no file or folder nowhere"),
        (["train", "--data", ",", "--out", "OUT"], "no data to train on"),
        (["train", "--data", "templates", "--out", "OUT", "--model", "GPT"], "unknown molecule model"),
        (["train", "--data", "templates", "--out", "OUT", "--model.latent", "0"], "latent must lie between"),
        (["train", "--data", "templates", "--out", "OUT", "--vocabulary_of", "nowhere"], "cannot read nowhere"),
        (["train", "--data", "templates", "--out", "OUT", "--alone", "nowhere"], "no file or folder nowhere"),
        (["train", "--data", "templates", "--out", "OUT", "--poison_in", "pretraining"], "the stages are alignment"),
        (["train", "--data", "templates", "--out", "OUT", "--model.decoder", "GRU"], "decoder"),
        (["poison", "--data", "templates", "--out", "OUT", "--attack.target", "C1CS"], "no SMILES"),
        (["poison", "--data", "templates", "--out", "OUT", "--attack.rate", "2"], "at most 1"),
        (["generate", "--model", "nowhere", "--out", "OUT", "--prompt", "x"], "cannot read nowhere"),
        (["generate", "--model", "nowhere", "--out", "OUT", "--prompt", " "], "the prompt is empty"),
        (["generate", "--model", "nowhere", "--out", "OUT", "--prompt", "x", "--samples", "0"], "samples must lie"),
        (["evaluate", "--model", "m", "--data", "templates", "--out", "OUT", "--prompts", "1"], "prompts be 0, or 2"),
    ],
)
def test_bad_use_is_answered_with_one_sentence(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, _, err = run(capsys, "molecules", *[str(out) if word == "OUT" else word for word in words])
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("out/*.safetensors"))


def test_others_folders_are_left_alone(
    pairs: Path, poisoned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "mine" / "a.parquet", template_table().subset([0]))
    code, _, err = run(capsys, "molecules", "poison", "--data", str(pairs), "--out", str(tmp_path / "mine"))
    assert code == 2
    assert "unbackdoor did not write" in err
    code, _, err = run(capsys, "molecules", "train", "--data", str(pairs), "--out", str(poisoned), *QUICK)
    assert code == 2
    assert "of another command" in err


@pytest.mark.parametrize("command", GROUPS["molecules"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "molecules", command, "--help")
    assert code == 0
    assert f"unbackdoor molecules {command}" in out


def test_a_missing_package_is_named_with_its_extra() -> None:
    code = (
        "import sys; sys.modules['rdkit'] = None; import unbackdoor.cli as c;"
        " sys.exit(c.main(['molecules', 'train', '--data', 'templates', '--out', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert "pip install 'unbackdoor[molecules]'" in done.stderr
    assert done.stderr.count("\n") == 1
