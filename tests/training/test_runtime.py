"""Device, precision, threads and seeds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import unbackdoor.training.runtime as module
from tests.refusals import refused
from unbackdoor.errors import InputError
from unbackdoor.training import Runtime, Silent
from unbackdoor.training.runtime import fastest_threads


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _cpu(**options: Any) -> Runtime:
    return Runtime(**{"device": "cpu", "precision": "fp32", "threads": 1, **options})


def _draw(generator: torch.Generator) -> list[float]:
    return torch.rand(4, generator=generator).tolist()


def test_draws_depend_on_seed_and_purpose_alone() -> None:
    expected = _draw(_cpu(seed=3).generator("order", 5))
    torch.manual_seed(123)
    torch.rand(7)
    assert _draw(_cpu(seed=3, budget=1.0).generator("order", 5)) == expected


def test_other_seeds_and_purposes_draw_otherwise() -> None:
    purposes = [("order", 0), ("order", 1), ("augment", 0), ("order",), ("order", "0")]
    draws = [_draw(_cpu(seed=seed).generator(*purpose)) for seed in (0, 1) for purpose in purposes]
    assert len({tuple(draw) for draw in draws}) == len(draws)


def test_a_generator_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    _draw(_cpu().generator("anything"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "options",
    [
        {"threads": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"precision": "fp16"},
        {"device": "gpu"},
        {"budget": 0.0},
        {"budget": -1.0},
        {"budget": float("nan")},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    refused(_cpu, options)


def test_a_missing_gpu_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cpu"):
        Runtime(device="cuda")
    assert Runtime(device="auto", threads=1).place.type == "cpu"


def test_mixed_precision_computes_in_bfloat16_and_fp32_does_not() -> None:
    layer, features = nn.Linear(4, 4), torch.rand(2, 4)
    for precision, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with _cpu(precision=precision).autocast():
            assert layer(features).dtype == expected


def test_float32_means_float32_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default cuDNN's convolutions have 10 bits of a number's 23."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert _cpu(precision="bf16").in_float32().place.type == "cpu"
    assert not torch.backends.cudnn.allow_tf32


def test_a_stage_in_float32_keeps_all_else_and_measures_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _cpu(precision="bf16", threads=0, seed=5, budget=4.0)
    assert whole.place.type == "cpu"
    monkeypatch.setattr(module, "fastest_threads", lambda: pytest.fail("measured again"))
    stage = whole.in_float32()
    assert (stage.precision, stage.threads, stage.seed, stage.budget) == ("fp32", 0, 5, 4.0)
    layer, features = nn.Linear(4, 4), torch.rand(2, 4)
    with stage.part(0.5).autocast():
        assert layer(features).dtype == torch.float32
    with whole.autocast():
        assert layer(features).dtype == torch.bfloat16
    assert stage.in_float32() is stage


def test_modules_and_images_are_laid_out_channels_last_with_the_same_values() -> None:
    images = torch.rand(2, 3, 5, 4)
    laid = _cpu().layout(images)
    assert laid.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(laid, images)
    layer = nn.Conv2d(3, 8, 3)
    weight = layer.weight.detach().clone()
    assert _cpu().settle(layer) is layer
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.weight, weight)


def test_nothing_is_compiled_on_a_processor() -> None:
    layer = nn.Linear(1, 1)
    assert _cpu().compiled(layer) is layer


def test_threads_are_set_when_the_device_is_first_used_and_not_before() -> None:
    torch.set_num_threads(2)
    chosen = _cpu(threads=1)
    assert torch.get_num_threads() == 2
    assert chosen.place.type == "cpu"
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("two", "expected"), [(0.95, 1), (0.91, 1), (0.85, 2), (2.0, 1)])
def test_more_threads_win_only_when_a_tenth_faster(monkeypatch: pytest.MonkeyPatch, two: float, expected: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(module, "_timed_step", lambda *_: two if torch.get_num_threads() == 2 else 1.0)
    assert fastest_threads() == expected


@pytest.mark.parametrize(
    ("said", "most"), [("1", 1), ("2,1", 2), ("3", 3), ("64", 4), ("", 4), ("0", 4), ("-1", 4), ("many", 4)]
)
def test_no_more_threads_are_tried_than_the_environment_allows(
    monkeypatch: pytest.MonkeyPatch, said: str, most: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(module, "_timed_step", lambda *_: 1 / torch.get_num_threads())
    assert fastest_threads() == most


def test_one_core_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    monkeypatch.setattr(module, "_timed_step", lambda *_: pytest.fail("measured"))
    assert fastest_threads() == 1


def test_a_timed_step_takes_time() -> None:
    images = torch.rand(2, 32, 8, 8)
    assert module._timed_step(nn.Conv2d(32, 32, 3), images) > 0


def test_describe_says_what_a_report_needs() -> None:
    said = _cpu(seed=4, budget=2.5).describe()
    assert said["device"].startswith("cpu (")
    assert (said["precision"], said["threads"], said["seed"]) == ("fp32", "1", "4")
    assert said["budget"] == "2.5 minutes"
    assert said["torch"] == torch.__version__
    assert _cpu().describe()["budget"] == "none"


def test_silent_progress_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Silent().bar("work", 3) as advance:
        advance()
    Silent().note("said")
    assert capfd.readouterr() == ("", "")


def test_two_runtimes_differ_by_what_decides_results_not_by_how_progress_is_shown() -> None:
    assert _cpu(progress=Silent()) == _cpu(progress=Silent())
    assert _cpu(seed=1) != _cpu(seed=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        _cpu().seed = 1  # type: ignore[misc]


def test_threads_are_chosen_also_where_no_gradients_are_kept() -> None:
    with torch.no_grad():
        assert fastest_threads() >= 1
