"""Options of methods as values: what a file says becomes a method, and a method says what it is."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from unbackdoor.attacks import ATTACKS, LF, SIG, BadNets, Blended, TaCT
from unbackdoor.errors import InputError
from unbackdoor.files import sha256
from unbackdoor.models import PreActResNet18
from unbackdoor.options import files_of, options_of, short_name, with_options
from unbackdoor.purify import FT, PURIFIERS, SAU
from unbackdoor.scan import SCANNERS
from unbackdoor.training import Recipe

METHODS = [*dict(ATTACKS).values(), *dict(PURIFIERS).values(), *dict(SCANNERS).values(), Recipe]
SIZES = frozenset({"channels", "classes"})


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_methods_options_survive_a_file(method: type) -> None:
    written = json.loads(json.dumps(options_of(method())))
    assert written.pop("name") == method.__name__
    assert with_options(method, written)() == method()
    assert short_name(method()) == method.__name__


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        (BadNets, {}, BadNets()),
        (BadNets, {"sources": [1, 3]}, BadNets(sources=(1, 3))),
        (BadNets, {"poison_rate": 1}, BadNets(poison_rate=1.0)),
        # YAML 1.1, which PyYAML reads, takes a number without a point for text.
        (FT, {"learning_rate": "1e-3"}, FT(learning_rate=0.001)),
        (BadNets, {"labels": "clean", "spare_target": True}, BadNets(labels="clean", spare_target=True)),
        (Blended, {"picture": "folder/cat.png"}, Blended(picture=Path("folder/cat.png"))),
        (Blended, {"picture": None}, Blended()),
        (SIG, {"test_amplitude": 0.2}, SIG(test_amplitude=0.2)),
        (Recipe, {"optimizer": "Adam", "epochs": 3}, Recipe(optimizer="Adam", epochs=3)),
    ],
)
def test_values_of_a_file_become_the_types_of_the_options(method: type, options: dict[str, Any], expected: Any) -> None:
    made = with_options(method, options)()
    assert made == expected
    assert {name: type(value) for name, value in vars(made).items()} == {
        name: type(value) for name, value in vars(expected).items()
    }


def test_only_the_options_that_are_given_are_bound() -> None:
    bound = with_options(PreActResNet18, {"width": 8}, SIZES)
    assert bound.func is PreActResNet18
    assert bound.keywords == {"width": 8}
    assert with_options(BadNets, {"target": 3}).keywords == {"target": 3}


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        (BadNets, "target", "three"),
        (BadNets, "target", 2.5),
        (BadNets, "target", True),
        (BadNets, "target", [3]),
        (BadNets, "target", {"a": 3}),
        (BadNets, "target", None),
        (BadNets, "poison_rate", "much"),
        (BadNets, "poison_rate", None),
        (BadNets, "sources", 3),
        (BadNets, "sources", ["one"]),
        (BadNets, "sources", [1.5]),
        (BadNets, "spare_target", 1),
        (BadNets, "labels", "dirty"),
        (Blended, "picture", 5),
        (FT, "augmentation", 5),
        (FT, "augmentation", None),
        (SAU, "steps", None),
        (Recipe, "optimizer", "Lion"),
    ],
)
def test_a_value_of_another_type_is_refused_by_the_options_name(method: type, option: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        with_options(method, {option: value})
    message = str(caught.value)
    assert message.startswith(f"{method.__name__}: option {option} cannot be {value!r}")
    assert message.isprintable()


def test_a_wrong_value_among_right_ones_is_the_one_that_is_named() -> None:
    with pytest.raises(InputError, match="SAU: option steps cannot be 'many'"):
        with_options(SAU, {"rounds": 3, "steps": "many", "bound": 0.1})


def test_the_message_about_a_hostile_value_is_short_and_harmless() -> None:
    with pytest.raises(InputError) as caught:
        with_options(BadNets, {"target": "\x1b[31mred\n" + "long " * 10_000})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("method", "option", "words"),
    [
        (BadNets, "targt", "BadNets has no option 'targt'; did you mean target?"),
        (FT, "xyzzy", "FT has no option 'xyzzy'; known: epochs, batch_size, learning_rate, augmentation"),
        (FT, "_name", "FT has no option '_name'"),
        (FT, "epochs.x", "FT has no option 'epochs.x'; did you mean epochs?"),
        (PreActResNet18, "classes", "PreActResNet18 has no option 'classes'"),
        (object, "width", "object has no option 'width'; known: none"),
    ],
)
def test_an_unknown_option_is_answered_with_the_likely_one(method: type, option: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        with_options(method, {option: 3}, SIZES)
    assert words in str(caught.value)


def test_a_value_is_never_the_name_of_a_file_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numbers.yaml").write_text("[1, 2]\n")
    (tmp_path / "number.yaml").write_text("3\n")
    for option, value in (("sources", "numbers.yaml"), ("target", "number.yaml")):
        with pytest.raises(InputError, match=f"option {option} cannot be"):
            with_options(BadNets, {option: value})


def test_options_are_not_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    for name in ("TARGET", "PYTEST_TARGET", "BADNETS_TARGET"):
        monkeypatch.setenv(name, "7")
    assert with_options(BadNets, {"size": 4})() == BadNets(size=4)


def test_options_are_json_values_and_a_files_name_has_no_folder() -> None:
    options = options_of(Blended(picture=Path("/home/me/cat.png"), sources=(2, 1)))
    assert json.loads(json.dumps(options)) == options
    assert options["name"] == "Blended"
    assert options["picture"] == "cat.png"
    assert options["sources"] == [2, 1]


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (FT(), "FT"),
        (FT(epochs=100), "FT"),
        (FT(epochs=3), "FT epochs=3"),
        (FT(augmentation="none", epochs=3), "FT epochs=3 augmentation=none"),
        (TaCT(), "TaCT"),
        (TaCT(sources=(2, 4)), "TaCT sources=[2, 4]"),
        (Blended(picture=Path("/home/me/cat.png")), "Blended picture=cat.png"),
        (SIG(test_amplitude=0.5), "SIG test_amplitude=0.5"),
        (Recipe(epochs=3), "Recipe epochs=3"),
        (with_options(PreActResNet18, {}, SIZES), "PreActResNet18"),
        (with_options(PreActResNet18, {"width": 8}, SIZES), "PreActResNet18 width=8"),
        (with_options(PreActResNet18, {"width": 64}, SIZES), "PreActResNet18"),
    ],
)
def test_a_short_name_has_the_options_that_are_not_the_defaults(method: Any, name: str) -> None:
    assert short_name(method) == name


def test_a_short_name_leaves_out_what_is_told_elsewhere() -> None:
    attack = BadNets(poison_rate=0.05, target=3)
    assert short_name(attack) == "BadNets target=3 poison_rate=0.05"
    assert short_name(attack, frozenset({"poison_rate"})) == "BadNets target=3"
    assert short_name(partial(PreActResNet18, width=8), frozenset({"width"})) == "PreActResNet18"


def test_files_are_told_by_their_content(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cat.png").write_bytes(b"meow")
    found = [files_of(Blended(picture=tmp_path / folder / "cat.png")) for folder in ("a", "b")]
    assert found[0] == found[1] == {"picture cat.png": sha256(b"meow")}
    (tmp_path / "b" / "cat.png").write_bytes(b"bark")
    assert files_of(Blended(picture=tmp_path / "b" / "cat.png")) == {"picture cat.png": sha256(b"bark")}


def test_a_method_without_files_has_none() -> None:
    assert files_of(Blended()) == {}
    assert files_of(FT()) == {}


def test_a_folder_is_told_by_the_names_and_contents_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    attack = LF(clean_model=tmp_path / "model")
    seen = [files_of(attack)]
    for name, content in (("a", "1"), ("b", "1"), ("a", "2")):
        (tmp_path / "model" / name).write_text(content)
        seen.append(files_of(attack))
    assert list(seen[0]) == ["clean_model model"]
    assert len({one["clean_model model"] for one in seen}) == 4


def test_a_file_that_cannot_be_read_is_named_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*cat\.png \(No such file.*\); the option picture takes a file"):
        files_of(Blended(picture=tmp_path / "cat.png"))
