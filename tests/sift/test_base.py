"""What a suspicion refuses, how rows are split, and what every sifter does with the rows it is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from tests.sift.spread import FEATURES, auroc, away, reader, runtime, spread
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.sift import SIFTERS, Sifter, SpectralSignatures, Suspicion
from unbackdoor.sift.base import extremes
from unbackdoor.sift.observed import Observed
from unbackdoor.sift.robust import robust_z
from unbackdoor.training import Runtime


def suspicion(**changed: object) -> Suspicion:
    fields = {
        "scores": torch.tensor([0.1, 0.9, 0.5]),
        "clean": torch.tensor([True, False, False]),
        "poisoned": torch.tensor([False, True, False]),
        "reasons": ("low", "high", "middle"),
    }
    return Suspicion(**{**fields, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scores": torch.tensor([0.1, float("nan"), 0.5])}, "one finite number a row"),
        ({"scores": torch.tensor([0.1, float("inf"), 0.5])}, "one finite number a row"),
        ({"scores": torch.tensor([1, 2, 3])}, "one finite number a row"),
        ({"scores": torch.rand(3, 1)}, "one finite number a row"),
        ({"clean": torch.tensor([1, 0, 0])}, "whether it is held clean"),
        ({"poisoned": torch.tensor([True])}, "whether it is held poisoned"),
        ({"poisoned": torch.tensor([True, True, False])}, "both clean and poisoned"),
        ({"reasons": ("one",)}, "3 rows need as many reasons, found 1"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(changed: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        suspicion(**changed)


def test_an_answer_says_of_each_row_what_it_is() -> None:
    found = suspicion()
    assert found.words() == ["clean", "poisoned", "undecided"]
    turned = found.at(torch.tensor([2, 0]))
    assert turned.words() == ["undecided", "clean"]
    assert list(turned.reasons) == ["middle", "low"]
    assert turned.scores.tolist() == pytest.approx([0.5, 0.1])
    assert found.to_json()["held"] == {"clean": 1, "poisoned": 1, "undecided": 1}
    assert found.to_json()["score_quantiles"]["0.5"] == pytest.approx(0.5)
    assert len(replace(found, reasons=()).at(torch.tensor([1])).reasons) == 0


def test_extremes_have_the_sizes_of_the_paper_and_chance_decides_among_equals() -> None:
    scores = torch.arange(40.0).flip(0)
    low, high = extremes(scores, 0.20, 0.05, torch.Generator().manual_seed(0))
    assert low.nonzero().squeeze(1).tolist() == list(range(32, 40))
    assert high.nonzero().squeeze(1).tolist() == [0, 1]
    equal = torch.zeros(1000)
    draws = [extremes(equal, 0.2, 0.05, torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert int(draws[0].sum()) == 200
    # By order alone, all would come from the front.
    assert 50 < int(draws[0][:500].sum()) < 150


def test_no_row_is_at_both_ends() -> None:
    low, high = extremes(torch.tensor([1.0, 2.0]), 0.9, 0.9, torch.Generator())
    assert not bool((low & high).any())


def test_the_robust_distance_is_that_of_the_formula_and_does_not_divide_by_zero() -> None:
    assert robust_z(torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0])).tolist() == pytest.approx(
        [(value - 3) / 1.482602 for value in (1, 2, 3, 4, 100)], rel=1e-5
    )
    assert robust_z(torch.ones(5)).tolist() == [0.0] * 5


@dataclass(frozen=True, kw_only=True)
class Brightness(Sifter):
    """Scores rows by how bright they are, so that which row is meant can be told."""

    def inspect(self, seen: Observed) -> Suspicion:
        scores = seen.rows.images.float().mean((1, 2, 3))
        poisoned = scores >= scores.max()
        return Suspicion(scores=scores, clean=~poisoned, poisoned=poisoned, reasons=[f"{s:.6f}" for s in scores])


def test_scores_come_back_in_the_order_of_the_rows() -> None:
    planted = spread(0.6 * away())
    found = Brightness().score(planted.data, runtime(), reader())
    wanted = planted.rows.images.float().mean((1, 2, 3))
    assert torch.equal(found.scores, wanted)
    assert list(found.reasons) == [f"{s:.6f}" for s in wanted]
    assert found.poisoned.nonzero().squeeze(1).tolist() == [int(wanted.argmax())]


def test_a_sifter_that_forgets_rows_is_noticed() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Forgets(Brightness):
        def inspect(self, seen: Observed) -> Suspicion:
            return super().inspect(seen).at(torch.arange(5))

    with pytest.raises(InputError, match="Forgets gave 5 scores for 600 rows"):
        Forgets().score(spread(away()).data, runtime(), reader())


def test_without_untrusted_data_there_is_nothing_to_sift() -> None:
    with pytest.raises(InputError, match="SpectralSignatures needs the data that"):
        SpectralSignatures().score(DefenderData(clean=spread(away()).rows), runtime(), reader())


def test_clean_samples_come_to_those_alone_that_use_them() -> None:
    planted = spread(torch.zeros(FEATURES), count=40)
    data = DefenderData(untrusted=planted.rows, clean=planted.plain)

    class Looks(Sifter):
        def inspect(self, seen: Observed) -> Suspicion:
            seen_clean.append(seen.clean)
            return Suspicion(scores=seen.losses, clean=seen.losses < 0, poisoned=seen.losses < 0)

    class Uses(Looks):
        uses_clean = True

    seen_clean: list[ImageSet | None] = []
    for sifter in (Looks(), Uses()):
        sifter.score(data, runtime(), reader())
    assert seen_clean[0] is None
    assert seen_clean[1] is not None
    assert len(seen_clean[1]) == len(planted.plain)


def test_without_a_model_one_is_trained_and_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    planted = spread(0.6 * away(), count=100)

    class Counts:
        notes: ClassVar[list[str]] = []

        def bar(self, description: str, total: int):  # type: ignore[no-untyped-def]
            from contextlib import nullcontext

            return nullcontext(lambda: None)

        def note(self, text: str) -> None:
            self.notes.append(text)

    watched = Runtime(device="cpu", precision="fp32", threads=1, progress=Counts())
    first = SpectralSignatures().score(planted.data, watched, resume=tmp_path / "resume.pt")
    assert not Counts.notes
    again = SpectralSignatures().score(planted.data, watched, resume=tmp_path / "resume.pt")
    assert Counts.notes == ["quick model: resumed after epoch 200 of 200"]
    assert torch.equal(first.scores, again.scores)


def test_names_and_shares_out_of_range_are_said() -> None:
    with pytest.raises(InputError, match="did you mean SPECTRE"):
        SIFTERS["SPECTR"]
    with pytest.raises(InputError, match="expected must be a share above 0 and below 1, found 0"):
        SpectralSignatures(expected=0.0)


def test_planted_rows_are_found_through_the_whole_path() -> None:
    planted = spread(0.6 * away())
    assert auroc(SpectralSignatures().score(planted.data, runtime(), reader()).scores, planted.planted) > 0.95


def test_methods_that_need_rows_of_either_kind_are_refused_without() -> None:
    some = torch.tensor([True, False, False])
    found = Suspicion(scores=torch.zeros(3), clean=some, poisoned=some.flip(0))
    assert [rows.tolist() for rows in found.held()] == [[0], [2]]
    with pytest.raises(InputError, match="0 poisoned"):
        Suspicion(scores=torch.zeros(3), clean=some, poisoned=torch.zeros(3, dtype=torch.bool)).held()
