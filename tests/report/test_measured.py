"""The charts of a repair: its loss if it has one, and every choice it made with the rule by which it made it."""

from __future__ import annotations

from unbackdoor.report import repair_charts
from unbackdoor.training import History, Sweep

SWEEP = Sweep(
    name="share of neurons reset", values=(0.0, 0.1, 0.2), accuracy=(0.9, 0.89, 0.3), chosen=0.1, rule="The rule."
)


def test_a_repair_without_rounds_has_no_loss_to_draw() -> None:
    assert repair_charts(History(epochs=0)) == []
    assert len(repair_charts(History(epochs=1, loss=[0.5]))) == 1


def test_a_choice_is_drawn_with_its_rule_and_what_was_chosen() -> None:
    loss, chart = repair_charts(History(epochs=2, loss=[0.5, 0.4], sweeps=(SWEEP,)))
    assert loss.title == "loss over round"
    assert chart.title == "accuracy on held-out clean samples over share of neurons reset"
    assert chart.explanation == "Chosen: 0.1. The rule."


def test_a_choice_is_kept_as_json_with_its_whole_curve() -> None:
    assert SWEEP.to_json() == {
        "name": "share of neurons reset",
        "values": [0.0, 0.1, 0.2],
        "accuracy": [0.9, 0.89, 0.3],
        "chosen": 0.1,
        "rule": "The rule.",
    }
