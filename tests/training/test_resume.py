"""An interrupted run goes on as if nothing had happened, and no other file is taken for its state."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError, OutputError, ResumeError
from unbackdoor.models import PreActResNet18
from unbackdoor.testing.samples import same_state, sample_images, sample_network, state_of
from unbackdoor.training import Batch, Hook, Recipe, Runtime, Silent, fit
from unbackdoor.training.resume import DIGEST_BYTES, Resume, sealed

RECIPE = Recipe(epochs=4, batch_size=12, learning_rate=0.01)
STEPS = 16  # 4 epochs of 4 batches


class Stops(Silent):
    """A progress bar that is interrupted after `after` steps, and keeps what it was told."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.notes: list[str] = []
        self.totals: list[int] = []

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[[], None]]:
        self.totals.append(total)
        steps = 0

        def advance() -> None:
            nonlocal steps
            steps += 1
            if steps == self.after:
                raise KeyboardInterrupt

        yield advance

    def note(self, text: str) -> None:
        self.notes.append(text)


def runtime(progress: Silent | None = None, **options: Any) -> Runtime:
    options = {"device": "cpu", "precision": "fp32", "threads": 1, **options}
    return Runtime(progress=progress or Silent(), **options)


@pytest.fixture
def images() -> ImageSet:
    return sample_images((3, 16, 16))


class Memory(Hook):
    """A hook whose loss depends on all batches before: its state must survive."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.zeros(4)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.images)
        self.level = 0.8 * self.level + 0.2 * logits.detach().mean(0)
        return nn.functional.cross_entropy(logits - self.level, batch.targets)

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level = state["level"]


class Forgets(Memory):
    """The same, but its state is lost."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def network() -> nn.Module:
    """Return a network with batch normalisation and dropout, which draws from the global generator."""
    whole = sample_network((3, 16, 16))
    whole.body.insert(7, nn.Dropout(0.3))
    return whole


def interrupted(images: ImageSet, recipe: Recipe, path: Path, after: int, hook: type[Hook] = Hook) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(network(), images, recipe, runtime(Stops(after)), hook=hook(), resume=path)


@pytest.mark.parametrize("after", [1, 4, 5, 10, 15, 16])
def test_an_interrupted_run_ends_as_the_uninterrupted_one_wherever_it_stopped(
    images: ImageSet, tmp_path: Path, after: int
) -> None:
    path, whole, again = tmp_path / "resume.pt", network(), network()
    expected = fit(whole, images, RECIPE, runtime(), hook=Hook())
    interrupted(images, RECIPE, path, after)
    assert path.exists() is (after > 4), "there is a file once an epoch is finished"
    torch.manual_seed(after)  # whatever happened in between
    progress = Stops()
    history = fit(again, images, RECIPE, runtime(progress), hook=Hook(), resume=path)
    assert same_state(state_of(whole), state_of(again))
    assert history == expected
    done = (after - 1) // 4
    assert progress.totals == [STEPS - 4 * done]
    assert progress.notes == ([f"training: resumed after epoch {done} of 4"] if done else [])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_finished_run_that_is_resumed_trains_nothing_and_ends_the_same(
    images: ImageSet, tmp_path: Path, ema: float
) -> None:
    """What comes after training, such as evaluating and saving, may be interrupted too."""
    path, recipe, whole, again = tmp_path / "resume.pt", replace(RECIPE, ema=ema), network(), network()
    expected = fit(whole, images, recipe, runtime(), hook=Memory(), resume=path)
    kept = path.read_bytes()
    progress = Stops(1)
    history = fit(again, images, recipe, runtime(progress), hook=Memory(), resume=path)
    assert progress.totals == [0]
    assert same_state(state_of(whole), state_of(again))
    assert history == expected
    assert not again.training
    assert path.read_bytes() == kept


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("hook", [Hook, Memory])
def test_optimisers_averages_and_hooks_survive(
    images: ImageSet, tmp_path: Path, optimizer: Any, ema: float, hook: type[Hook]
) -> None:
    recipe = replace(RECIPE, optimizer=optimizer, ema=ema, label_smoothing=0.0)
    whole, again = network(), network()
    expected = fit(whole, images, recipe, runtime(), hook=hook())
    interrupted(images, recipe, tmp_path / "r", 10, hook)
    history = fit(again, images, recipe, runtime(), hook=hook(), resume=tmp_path / "r")
    assert same_state(state_of(whole), state_of(again))
    assert history == expected


def test_two_interruptions_are_no_worse_than_one(images: ImageSet, tmp_path: Path) -> None:
    path, whole, again = tmp_path / "r", network(), network()
    fit(whole, images, RECIPE, runtime(), hook=Memory())
    interrupted(images, RECIPE, path, 6, Memory)
    interrupted(images, RECIPE, path, 6, Memory)
    fit(again, images, RECIPE, runtime(), hook=Memory(), resume=path)
    assert same_state(state_of(whole), state_of(again))


def test_a_hook_that_forgets_ends_elsewhere(images: ImageSet, tmp_path: Path) -> None:
    """So the tests above can fail."""
    whole, again = network(), network()
    fit(whole, images, RECIPE, runtime(), hook=Forgets())
    interrupted(images, RECIPE, tmp_path / "r", 10, Forgets)
    fit(again, images, RECIPE, runtime(), hook=Forgets(), resume=tmp_path / "r")
    assert not same_state(state_of(whole), state_of(again))


def test_a_shortened_run_keeps_its_length(images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget is measured once; a resumed run must not measure it anew."""
    import unbackdoor.training.run as module

    monkeypatch.setattr(module, "affordable", lambda *_: 3)
    path = tmp_path / "r"
    with pytest.raises(KeyboardInterrupt):
        fit(network(), images, RECIPE, runtime(Stops(6), budget=1.0), resume=path)
    monkeypatch.setattr(module, "affordable", lambda *_: 1)
    history = fit(network(), images, RECIPE, runtime(budget=1.0), resume=path)
    assert history.epochs == len(history.loss) == 3


class Other(Hook):
    pass


def _with_other_label(images: ImageSet) -> ImageSet:
    return replace(images, labels=images.labels.roll(1))


def _with_other_pixel(images: ImageSet) -> ImageSet:
    changed = images.images.clone()
    changed[-1, -1, -1, -1] ^= 1
    return replace(images, images=changed)


def _with_other_weight() -> nn.Module:
    changed = network()
    with torch.no_grad():
        changed.body[8].bias[-1] += 1e-6
    return changed


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": replace(RECIPE, learning_rate=0.011)},
        {"recipe": replace(RECIPE, epochs=5)},
        {"recipe": replace(RECIPE, ema=0.0)},
        {"recipe": replace(RECIPE, label_smoothing=0.2)},
        {"runtime": runtime(seed=1)},
        {"runtime": runtime(precision="bf16")},
        {"runtime": runtime(budget=10.0)},
        {"data": _with_other_label(sample_images((3, 16, 16)))},
        {"data": _with_other_pixel(sample_images((3, 16, 16)))},
        {"model": _with_other_weight()},
        {"hook": Other()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_file_of_another_run_is_refused_and_kept(images: ImageSet, tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "resume.pt"
    interrupted(images, RECIPE, path, 10)
    kept = path.read_bytes()
    run = {"model": network(), "data": images, "recipe": RECIPE, "runtime": runtime(), "hook": Hook(), **change}
    before = state_of(run["model"])
    with pytest.raises(ResumeError, match=r"resume\.pt belongs to an interrupted run with other settings or data"):
        fit(run["model"], run["data"], run["recipe"], run["runtime"], hook=run["hook"], resume=path)
    assert path.read_bytes() == kept
    assert same_state(before, state_of(run["model"]))


@pytest.fixture
def stored(tmp_path: Path) -> bytes:
    path = tmp_path / "good"
    Resume(path, "f").write({"model": {"w": torch.arange(50.0)}, "epochs": 3, "loss": [1.0]})
    return path.read_bytes()


def test_what_is_written_is_read_by_the_same_run_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r"
    Resume(path, "mine").write({"model": {"w": torch.arange(3.0)}, "epochs": 3, "loss": [0.5]})
    state = Resume(path, "mine").read()
    assert state is not None
    assert state.keys() == {"model", "epochs", "loss"}
    assert torch.equal(state["model"]["w"], torch.arange(3.0))
    with pytest.raises(ResumeError, match="other settings"):
        Resume(path, "another").read()
    path.unlink()
    assert Resume(path, "mine").read() is None


def damaged(path: Path) -> str:
    with pytest.raises(ResumeError, match=r"cannot be resumed from \(damaged\); delete it to start again") as caught:
        Resume(path, "f").read()
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_refused_with_a_sentence(tmp_path: Path, stored: bytes, share: float) -> None:
    path = tmp_path / "cut"
    path.write_bytes(stored[: int(share * len(stored))])
    damaged(path)


@pytest.mark.parametrize("content", [b"nothing", b"\x00" * 4096, b"PK\x03\x04" + b"x" * 100, b"\x80\x02}q\x00."])
def test_other_files_are_refused_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r").write_bytes(content)
    damaged(tmp_path / "r")


def with_pickle(stored: bytes, pickled: bytes) -> bytes:
    """Return the file with another pickle in it, its archive and its checksum right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(stored)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return sealed(out.getvalue())


@pytest.mark.parametrize("pickled", [b"", b"\x80\x02", b"\x80\x02s.", b"\x80\x02J\x01"])
def test_a_broken_pickle_in_a_whole_archive_is_refused_with_a_sentence(
    tmp_path: Path, stored: bytes, pickled: bytes
) -> None:
    (tmp_path / "r").write_bytes(with_pickle(stored, pickled))
    damaged(tmp_path / "r")


def test_a_changed_weight_is_refused(tmp_path: Path, stored: bytes) -> None:
    numbers = torch.arange(50.0).numpy().tobytes()
    assert stored.count(numbers) == 1
    broken = bytearray(stored)
    broken[stored.index(numbers) + 42] ^= 16
    (tmp_path / "r").write_bytes(bytes(broken))
    damaged(tmp_path / "r")


def test_changed_bytes_are_refused_or_still_read_as_a_state(tmp_path: Path, stored: bytes) -> None:
    """Without a checksum that notices them, changes of the pickled part end in a sentence, or are no structure."""
    path, generator = tmp_path / "r", torch.Generator().manual_seed(0)
    start, end = stored.index(b"data.pkl"), stored.index(b"PK\x03\x04", stored.index(b"data.pkl"))
    refused = 0
    for _ in range(200):
        broken = bytearray(stored)
        place = int(torch.randint(start, end, (1,), generator=generator))
        broken[place] ^= int(torch.randint(1, 256, (1,), generator=generator))
        path.write_bytes(sealed(bytes(broken[DIGEST_BYTES:])))
        try:
            Resume(path, "f").read()
        except ResumeError:
            refused += 1
    assert refused > 20


def test_any_changed_byte_is_refused(tmp_path: Path, stored: bytes) -> None:
    path = tmp_path / "r"
    for place in range(0, len(stored), 7):
        broken = bytearray(stored)
        broken[place] ^= 1
        path.write_bytes(bytes(broken))
        damaged(path)


def saved(content: Any) -> bytes:
    """Return the file that `torch.save` makes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("content", [[1, 2], ("a",), 5, torch.zeros(2), {"model": {}}], ids=str)
@pytest.mark.parametrize("finish", [bytes, sealed])
def test_a_torch_file_that_holds_no_state_is_refused_with_a_sentence(
    tmp_path: Path, content: Any, finish: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "r").write_bytes(finish(saved(content)))
    damaged(tmp_path / "r")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (saved({"fingerprint": "f", "model": Bomb()}), pickle.dumps(Bomb())):
        for finish in (bytes, sealed):
            (tmp_path / "r").write_bytes(finish(content))
            damaged(tmp_path / "r")
    assert not Path("exploded").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("exploded").exists(), "the bomb is armed"


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        Resume(tmp_path / "file" / "r", "f").write({})


@pytest.mark.parametrize(("asked", "expected"), [(0, 2), (1, 1)])
def test_a_resumed_run_keeps_the_number_of_threads_unless_the_user_says_another(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, expected: int
) -> None:
    """The number changes the order of sums; by itself it is chosen by measuring, anew at every start."""
    path = tmp_path / "resume.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(sample_network(images.shape), images, RECIPE, runtime(Stops(6), threads=2), resume=path)
    monkeypatch.setattr("unbackdoor.training.runtime.fastest_threads", lambda: 1)
    fit(sample_network(images.shape), images, RECIPE, runtime(threads=asked), resume=path)
    assert torch.get_num_threads() == expected


@pytest.mark.parametrize(("cost", "states"), [(0.1, 4), (0.3, 2)])
def test_states_that_take_long_to_write_are_written_less_often(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: float, states: int
) -> None:
    """After every epoch, or after the first and the last if the others come within twenty times the cost."""
    written = []
    write = Resume.write

    def seen(self: Resume, state: dict[str, Any]) -> None:
        write(self, state)
        written.append(len(state["loss"]) if "loss" in state else 0)

    clock = iter(value for _ in range(9) for value in (0.0, cost))
    monkeypatch.setattr(Resume, "write", seen)
    monkeypatch.setattr("unbackdoor.training.run.time.process_time", lambda: next(clock))
    fit(sample_network((3, 16, 16)), images, RECIPE, runtime(), resume=tmp_path / "resume.pt")
    assert len(written) == states


def test_batches_of_one_image_are_refused_in_a_sentence() -> None:
    """Where maps end at 1 x 1, such a batch has no statistics."""
    network = PreActResNet18(channels=3, classes=4, width=4)
    recipe = replace(RECIPE, batch_size=1)
    with pytest.raises(InputError, match="batches of one image have no statistics"):
        fit(network, sample_images((3, 8, 8)), recipe, runtime())
