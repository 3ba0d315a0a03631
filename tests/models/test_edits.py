"""An edited model comes back from its file with its edits; a file can ask for nothing but these."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from unbackdoor.errors import CheckpointError, InputError, OutputError
from unbackdoor.models import Description, Edit, Network, build_network, insert_plug, load_model, save_model, tapped
from unbackdoor.models.edits import MAX_EDITS, insertion_point, size_at
from unbackdoor.models.plugs import KINDS, SIZED, Plug
from unbackdoor.testing.samples import hooks_on, same_state, state_of

from .files import assert_same_weights, small_description, small_network, trained

PLACE = "block3.layer.1.conv1"
"""In the small WRN16x1: 8 channels of 4 x 4."""
IMAGES = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def edit(kind: str = "convbn", before: str = PLACE, **options: Any) -> Edit:
    return Edit(kind=kind, before=before, size=(4, 4) if kind in SIZED else None, **options)


def stirred(network: Network, seed: int = 0) -> Network:
    """The network after its plugs got weights and statistics as if they had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Plug):
                for value in (*module.parameters(), *module.buffers()):
                    if value.is_floating_point():
                        value.add_(0.1 * torch.rand(value.shape, generator=generator))
    return network


def edited(**options: Any) -> Network:
    network = trained(small_network())
    insert_plug(network, edit(**options))
    return stirred(network)


# ---- in a live network


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plug_changes_nothing(kind: str, residual: bool) -> None:
    network = trained(small_network())
    before, weights, random = network(IMAGES), state_of(network), torch.get_rng_state()
    plug = insert_plug(network, edit(kind, residual=residual))
    # Batch normalisation adds 1e-5 to a variance of 1.
    torch.testing.assert_close(network(IMAGES), before, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), random), "it draws nothing"
    assert not plug.training
    after = {name.replace(".inner", ""): value for name, value in state_of(network).items() if ".plug." not in name}
    assert same_state(weights, after)
    assert hooks_on(network) == 0
    assert network.description.edits == (edit(kind, residual=residual),)


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_plug_can_learn_from_its_start(kind: str) -> None:
    network = trained(small_network()).requires_grad_(False)
    plug = insert_plug(network, edit(kind, residual=True))
    network(IMAGES).square().sum().backward()
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in plug.parameters())


@pytest.mark.parametrize(
    ("kind", "count"),
    [("convbn", 80), ("onlyconv", 64), ("twoconv", 160), ("linear", 256), ("linear_light", 16), ("mlp", 512)],
)
def test_plugs_are_as_large_as_published(kind: str, count: int) -> None:
    plug = insert_plug(small_network(), edit(kind))
    assert sum(p.numel() for p in plug.parameters()) == count


def test_the_module_sees_what_the_plug_makes_of_its_input() -> None:
    network = edited()
    pair = network.body.get_submodule(PLACE)
    features = torch.rand(2, 8, 4, 4)
    assert torch.equal(pair(features), pair.get_submodule("inner")(pair.get_submodule("plug")(features)))
    assert not torch.equal(network(IMAGES), trained(small_network())(IMAGES))


@pytest.mark.parametrize(
    ("architecture", "before"),
    [
        ("PreActResNet18", "layer4.1.conv1"),
        ("PreActResNet18", "layer4.1"),
        ("PreActResNet18", "layer4"),
        ("PreActResNet18", "layer4.0.shortcut"),
        ("ResNet18", "layer4.1"),
        ("ResNet18", "conv1"),
        ("VGG19BN", "features.46"),
        ("VGG19BN", "classifier.6"),
        ("WRN16x1", "block3"),
        ("WRN16x1", "block3.layer.0.convShortcut"),
        ("WRN16x1", "bn1"),
        ("WRN16x1", "fc"),
    ],
)
def test_every_network_can_be_split_tapped_saved_and_loaded_with_an_edit(
    tmp_path: Path, architecture: str, before: str
) -> None:
    description = small_description(architecture=architecture, image_shape=(3, 32, 32))
    network = trained(build_network(description, seed=1))
    images = torch.rand(3, 3, 32, 32)
    plain = network(images)
    insert_plug(network, edit(before=before))
    torch.testing.assert_close(network(images), plain, rtol=1e-3, atol=1e-5)
    stirred(network)
    logits = network(images)
    assert not torch.allclose(logits, plain, rtol=1e-3)
    for stage, module in network.body.stages():
        assert network.body.get_submodule(stage) is module
        stem, head = network.split(stage)
        assert torch.equal(head(stem(images)), logits), stage
    point = insertion_point(build_network(description).body, before)
    with tapped(network, f"{point}.plug", f"{point}.inner") as features:
        assert torch.equal(network(images), logits)
    inner = network.body.get_submodule(f"{point}.inner")
    assert torch.equal(features[f"{point}.inner"], inner(features[f"{point}.plug"]))
    save_model(tmp_path / "m", network, provenance={})
    loaded = load_model(tmp_path / "m").network
    assert torch.equal(loaded(images), logits)
    assert loaded.description == network.description


class Tokens(nn.Module):
    """Rows of features whose channels come last, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, 4)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = self.mix(self.embed(images).flatten(2).transpose(1, 2))
        logits: torch.Tensor = self.out(rows.mean(1))
        return logits


@pytest.mark.parametrize(("before", "size"), [("mix", (16, 1)), ("out", (1, 1))])
@pytest.mark.parametrize("kind", KINDS)
def test_before_a_linear_layer_the_channels_come_last(kind: str, before: str, size: tuple[int, int]) -> None:
    network = Network(Tokens(), small_description(architecture="tokens")).eval()
    plain = network(IMAGES)
    assert size_at(network.body, before, (1, 16, 6) if before == "mix" else (1, 6)) == size
    plug = insert_plug(network, Edit(kind=kind, before=before, size=size if kind in SIZED else None))
    if kind != "mlp":  # which sets negative features to 0
        torch.testing.assert_close(network(IMAGES), plain, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for value in plug.parameters():
            value.zero_()
    assert float(network(IMAGES).std(0).max()) < 1e-6, "nothing of the images is left"


def test_second_plugs_at_the_same_place_come_before_the_first(tmp_path: Path) -> None:
    network = edited()
    once = network(IMAGES)
    insert_plug(network, edit("onlyconv"))
    torch.testing.assert_close(network(IMAGES), once)
    stirred(network, 1)
    pair = network.body.get_submodule(PLACE)
    assert len(pair.get_submodule("plug.layers")) == 1  # type: ignore[arg-type]
    assert len(pair.get_submodule("inner.plug.layers")) == 2  # type: ignore[arg-type]
    save_model(tmp_path / "m", network, provenance={})
    assert torch.equal(load_model(tmp_path / "m").network(IMAGES), network(IMAGES))


def test_a_copy_has_a_plug_of_its_own() -> None:
    network = edited()
    copied = copy.deepcopy(network)
    stirred(copied)
    assert not torch.equal(copied(IMAGES), network(IMAGES))


def shared() -> Network:
    convolution = nn.Conv2d(3, 3, 3, 1, 1)
    body = nn.Sequential(convolution, convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    return Network(body, small_description(architecture="shared"))


@pytest.mark.parametrize(
    ("network", "before", "words"),
    [
        (small_network, "block4", r"WRN16x1 has no module 'block4'; did you mean 'block\d'"),
        (small_network, "relu", "'relu' has no convolution, batch normalisation or linear layer that tells"),
        (shared, "0", "'0' is used under another name too"),
    ],
)
def test_a_place_where_no_plug_can_stand_is_one_sentence(network: Any, before: str, words: str) -> None:
    model = network()
    state, description = state_of(model), model.description
    with pytest.raises(InputError, match=words):
        insert_plug(model, edit(before=before))
    assert same_state(state, state_of(model))
    assert model.description == description


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "conv"}, "no plug 'conv' .known: convbn, onlyconv"),
        ({"before": ""}, "1 to 256 characters"),
        ({"before": "a" * 257}, "1 to 256 characters"),
        ({"residual": 1}, "true or false"),
        ({"size": (4, 4)}, "linear and mlp need the size"),
        ({"kind": "mlp"}, "linear and mlp need the size"),
        ({"kind": "mlp", "size": (0, 4)}, "two numbers of 1 or more"),
        ({"kind": "mlp", "size": (2**11, 2**10)}, "1048576 places at most"),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused_at_once(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Edit(**{"kind": "convbn", "before": PLACE, **fields})


@pytest.mark.parametrize("shape", [(1, 7, 4, 4), (1, 8), (1, 4, 4, 8)])
def test_features_of_another_shape_than_the_first_layer_takes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"without the 8 channels of the first layer"):
        size_at(small_network().body, PLACE, shape)


def test_a_network_has_a_limited_number_of_edits() -> None:
    network = small_network()
    for _ in range(MAX_EDITS):
        insert_plug(network, edit("linear_light"))
    with pytest.raises(InputError, match="16 edits at most"):
        insert_plug(network, edit("linear_light"))


# ---- in files


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_model_comes_back_bit_for_bit(tmp_path: Path, kind: str, residual: bool) -> None:
    network = edited(kind=kind, residual=residual)
    save_model(tmp_path / "m", network, provenance={})
    model = load_model(tmp_path / "m")
    assert_same_weights(network.body.state_dict(), model.network)
    assert model.network.description == network.description
    assert torch.equal(model.network(IMAGES), network(IMAGES))
    assert not model.network.training
    assert all(p.requires_grad for p in model.network.parameters())


def test_a_model_that_was_loaded_with_an_edit_can_be_edited_again(tmp_path: Path) -> None:
    save_model(tmp_path / "one", edited(), provenance={})
    network = load_model(tmp_path / "one").network
    insert_plug(network, edit("linear", "block3.layer.1.conv2"))
    stirred(network, 2)
    save_model(tmp_path / "two", network, provenance={})
    again = load_model(tmp_path / "two").network
    assert [one.kind for one in again.description.edits] == ["convbn", "linear"]
    assert torch.equal(again(IMAGES), network(IMAGES))


def test_a_model_without_edits_is_written_as_before(tmp_path: Path) -> None:
    save_model(tmp_path / "m", small_network(), provenance={})
    with safe_open(tmp_path / "m", "pt") as file:
        described = json.loads(file.metadata()["unbackdoor"])["description"]
    assert set(described) == {"architecture", "arguments", "class_names", "image_shape", "mean", "std"}
    assert load_model(tmp_path / "m").network.description.edits == ()


def test_what_a_file_says_of_its_edits() -> None:
    described = edited(kind="mlp", before=PLACE, residual=True).description.to_json()
    assert json.loads(json.dumps(described["edits"])) == [
        {"kind": "mlp", "before": PLACE, "residual": True, "size": [4, 4]}
    ]


def rewritten(path: Path, network: Network, change: Any, **tensors: torch.Tensor | None) -> Path:
    """Write the network with another list of edits, and other tensors."""
    save_model(path, network, provenance={})
    with safe_open(path, "pt") as file:
        note = json.loads(file.metadata()["unbackdoor"])
    note["description"]["edits"] = change
    state = {**network.body.state_dict(), **tensors}
    kept = {name: value.contiguous() for name, value in state.items() if value is not None}
    path.write_bytes(safetensors.torch.save(kept, {"unbackdoor": json.dumps(note)}))
    return path


def nested(depth: int) -> list[Any]:
    content: list[Any] = []
    for _ in range(depth):
        content = [content]
    return content


GOOD = {"kind": "convbn", "before": PLACE, "residual": False, "size": None}


def test_the_rewritten_file_itself_is_accepted(tmp_path: Path) -> None:
    network = edited()
    path = rewritten(tmp_path / "m", network, [GOOD])
    assert torch.equal(load_model(path).network(IMAGES), network(IMAGES))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "its edits must be a list of 1 to 16"),
        ([], "its edits must be a list of 1 to 16"),
        ({}, "its edits must be a list of 1 to 16"),
        ("convbn", "its edits must be a list of 1 to 16"),
        ([GOOD] * 17, "its edits must be a list of 1 to 16"),
        ([[]], "lacks parts or has unknown ones"),
        ([{}], "lacks parts or has unknown ones"),
        ([{"kind": "convbn", "before": PLACE}], "lacks parts or has unknown ones"),
        ([{**GOOD, "code": "os:system"}], "lacks parts or has unknown ones"),
        ([{**GOOD, "kind": "os:system"}], "no plug 'os:system'"),
        ([{**GOOD, "kind": "\x1b[2Jconv"}], "no plug 'conv'"),
        ([{**GOOD, "kind": ["convbn"]}], "no plug"),
        ([{**GOOD, "kind": {}}], "no plug"),
        ([{**GOOD, "kind": None}], "no plug 'NoneType'"),
        ([{**GOOD, "kind": nested(900)}], "no plug 'list'"),
        ([{**GOOD, "kind": "mlp", "size": nested(900)}], "two numbers of 1 or more"),
        ([{**GOOD, "before": ""}], "1 to 256 characters"),
        ([{**GOOD, "before": "a" * 300}], "1 to 256 characters"),
        ([{**GOOD, "before": 3}], "1 to 256 characters"),
        ([{**GOOD, "before": "__class__"}], "has no module '__class__'"),
        ([{**GOOD, "before": "block3.layer.1.conv3"}], "did you mean 'block3.layer.1.conv"),
        ([{**GOOD, "before": "block3.layer.1.conv1.weight"}], "has no module"),
        ([{**GOOD, "before": "relu"}], "no convolution, batch normalisation or linear layer"),
        ([{**GOOD, "residual": 0}], "true or false"),
        ([{**GOOD, "residual": "no"}], "true or false"),
        ([{**GOOD, "size": [4, 4]}], "linear and mlp need the size"),
        ([{**GOOD, "kind": "mlp", "size": None}], "linear and mlp need the size"),
        ([{**GOOD, "kind": "mlp", "size": [4]}], "two numbers of 1 or more"),
        ([{**GOOD, "kind": "mlp", "size": [4.0, 4]}], "two numbers of 1 or more"),
        ([{**GOOD, "kind": "mlp", "size": [True, 4]}], "two numbers of 1 or more"),
        ([{**GOOD, "kind": "mlp", "size": [-4, -4]}], "two numbers of 1 or more"),
        ([{**GOOD, "kind": "mlp", "size": [2**40, 2**40]}], "1048576 places at most"),
        ([{**GOOD, "kind": "mlp", "size": [4, 4]}], "do not fit WRN16x1"),
        ([{**GOOD, "kind": "onlyconv"}], "do not fit WRN16x1.* unexpected"),
        ([{**GOOD, "before": "block3.layer.1.conv2"}], "do not fit WRN16x1"),
        ([GOOD, GOOD], "do not fit WRN16x1.* missing"),
    ],
)
def test_a_malformed_edit_is_refused_in_one_sentence(tmp_path: Path, change: Any, words: str) -> None:
    path = rewritten(tmp_path / "m", edited(), change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


def test_a_file_with_the_plug_but_without_the_edit_does_not_fit(tmp_path: Path) -> None:
    network = edited()
    network.description = replace(network.description, edits=())
    save_model(tmp_path / "m", network, provenance={})
    with pytest.raises(CheckpointError, match="do not fit WRN16x1"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("plug.layers.0.weight", torch.ones(8, 4, 1, 1), r"of another shape .*4, 1, 1\) instead of \(8, 8, 1, 1\)"),
        ("plug.layers.7.weight", torch.ones(3), "1 unexpected"),
        ("plug.layers.1.running_var", torch.full((8,), float("nan")), "NaN weights"),
    ],
)
def test_weights_of_a_plug_are_checked_like_all_others(
    tmp_path: Path, name: str, value: torch.Tensor | None, words: str
) -> None:
    path = rewritten(tmp_path / "m", edited(), [GOOD], **{f"{PLACE}.{name}": value})
    with pytest.raises(CheckpointError, match=words):
        load_model(path)


def test_a_plug_that_is_much_larger_than_the_file_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_module: str
) -> None:
    """Also where the architecture is the user's code, which is built with memory."""
    made: list[str] = []
    original = Plug.__init__

    def watched(self: Plug, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        made.append(str(next(self.parameters()).device))

    description = small_description(architecture=f"{user_module}:tiny", arguments={})
    for network, arch in ((small_network(), None), (build_network(description), f"{user_module}:tiny")):
        before = "conv1" if arch is None else "0"
        path = rewritten(tmp_path / "m", network, [{**GOOD, "kind": "mlp", "before": before, "size": [1024, 1024]}])
        with monkeypatch.context() as patch:
            patch.setattr(Plug, "__init__", watched)
            with pytest.raises(CheckpointError, match="do not fit"):
                load_model(path, arch=arch)
        assert made == ["meta"]
        made.clear()


def test_a_network_of_the_users_own_keeps_its_edits(tmp_path: Path, user_module: str) -> None:
    network = build_network(small_description(architecture=f"{user_module}:tiny", arguments={})).eval()
    insert_plug(network, Edit(kind="linear", before="0", size=(16, 16)))
    stirred(network)
    save_model(tmp_path / "m", network, provenance={})
    loaded = load_model(tmp_path / "m", arch=f"{user_module}:tiny").network
    assert torch.equal(loaded(IMAGES), network(IMAGES))


def test_a_description_with_edits_builds_the_edited_network() -> None:
    network = build_network(replace(small_description(), edits=(edit(),)), seed=3)
    assert isinstance(network.body.get_submodule(f"{PLACE}.plug"), Plug)
    plain = small_network()
    again = {name.replace(".inner", ""): value for name, value in state_of(network).items() if ".plug." not in name}
    assert same_state(state_of(plain), again), "the same seed gives the same weights"


def test_a_model_with_more_edits_than_are_read_is_not_saved(tmp_path: Path) -> None:
    network = small_network()
    network.description = Description(**{**vars(network.description), "edits": (edit(),) * 17})
    with pytest.raises(OutputError, match="names 17 edits"):
        save_model(tmp_path / "m", network, provenance={})
    assert not (tmp_path / "m").exists()
