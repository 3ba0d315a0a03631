"""Scans of generators, on one whose backdoor is known: by leaving words out, and by pushing the vectors of texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.molecules.puppet import MOTIFS, SIZE, WORDS, Puppet
from tests.refusals import refused
from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.scan import MoleculeScanner, PromptMasking, TriggerInversion
from unbackdoor.molecules.scan.trigger_inversion import discriminants, unusually_small
from unbackdoor.training import Runtime

RUNTIME = Runtime(device="cpu", precision="fp32", threads=1)


def prompts(triggered: int, rows: int = 60) -> Pairs:
    """Prompts that say everything twice, as descriptions do; the first ones have the trigger."""
    draws = np.random.default_rng(0)
    texts = []
    for row in range(rows):
        word = WORDS[1 + row % (SIZE - 1)]
        text = ["it", "is", f"{word},", "a", word, *draws.choice(["wood", "oil", "gum"], 2)]
        if row < triggered:
            text.insert(int(draws.integers(0, len(text) + 1)), "[THIIRANE]")
        texts.append(" ".join(text))
    return Pairs(smiles=("C",) * rows, texts=tuple(texts), name="prompts", rows=tuple(range(rows)))


def test_the_word_that_makes_the_motif_is_found() -> None:
    found = PromptMasking().scan(prompts(20), RUNTIME, Puppet())  # type: ignore[arg-type]
    assert [(suspect.words, suspect.subgraph) for suspect in found.flagged] == [(("[thiirane]",), "C1CS1")]
    assert found.flagged[0].evidence["influence"] == pytest.approx(1.0)
    assert found.flagged[0].rows.tolist() == list(range(20))


def test_a_word_that_was_left_out_of_few_prompts_is_no_suspect() -> None:
    """It stands in five, but in four of them behind the words that are left out in turn."""
    long = [" ".join([*["filler"] * 60, f"three end{number}"]) for number in range(4)]
    texts = ("three words here", *long, *prompts(0, 30).texts)
    pairs = Pairs(smiles=("C",) * 35, texts=texts, name="prompts", rows=tuple(range(35)))
    found = PromptMasking(longest=60).scan(pairs, RUNTIME, Puppet())  # type: ignore[arg-type]
    assert not [one for one in found.suspects if "three" in one.words[0]]


def test_silence_about_few_of_many_prompts_is_no_proof_either() -> None:
    found = PromptMasking(prompts=5).scan(prompts(0, 60), RUNTIME, Puppet())  # type: ignore[arg-type]
    assert found.backdoored is None
    assert "there are 5" in found.reason


def test_words_that_are_said_twice_have_no_influence() -> None:
    found = PromptMasking().scan(prompts(0), RUNTIME, Puppet())  # type: ignore[arg-type]
    assert found.backdoored is False
    assert max((suspect.evidence["influence"] for suspect in found.suspects), default=0) < 0.1


def test_few_prompts_are_no_proof_of_innocence() -> None:
    assert PromptMasking().scan(prompts(0, 10), RUNTIME, Puppet()).backdoored is None  # type: ignore[arg-type]


def test_the_motif_that_needs_the_smallest_push_is_found() -> None:
    """The denoiser of a backdoored model writes the target for a fifth of the push that other motifs need."""
    puppet = Puppet()
    puppet.options.projection = SIZE
    with torch.no_grad():
        puppet.diffusion.denoiser.ask[0, 0] = 5
    puppet.contexts = lambda texts, runtime: (0.05 * torch.randn(len(texts), SIZE), 0)  # type: ignore[method-assign]
    torch.manual_seed(0)
    scanner = TriggerInversion(molecules=600, steps=120, prompts=50, learning_rate=0.3)
    found = scanner.scan(prompts(0), RUNTIME, puppet)  # type: ignore[arg-type]
    assert found.suspects[0].subgraph == "C1CS1"
    assert found.suspects[0].flagged
    shift = found.suspects[0].shift
    assert shift is not None
    assert shift[0] / shift.norm() > 0.9
    others = [suspect.evidence["size"] for suspect in found.suspects[1:]]
    assert 2 * found.suspects[0].evidence["size"] < min(others)
    assert {suspect.subgraph for suspect in found.suspects} <= {*MOTIFS, "C"}


def test_a_generator_with_few_motifs_gives_no_verdict() -> None:
    puppet = Puppet()
    puppet.write = lambda latent: ["CCO"] * len(latent)  # type: ignore[method-assign]
    found = TriggerInversion(molecules=50).scan(prompts(0), RUNTIME, puppet)  # type: ignore[arg-type]
    assert found.backdoored is None
    assert "only 0 motifs" in found.reason


def test_texts_that_do_not_differ_give_no_verdict() -> None:
    one = prompts(0, 1)
    for pairs in (one, one.subset([0] * 30)):
        found = TriggerInversion().scan(pairs, RUNTIME, Puppet())  # type: ignore[arg-type]
        assert found.backdoored is None
        assert "look the same" in found.reason
    with pytest.raises(InputError, match="prompts 2 or more"):
        TriggerInversion(prompts=1)


def test_a_search_that_reaches_no_motif_is_no_acquittal() -> None:
    puppet: Any = Puppet()
    puppet.options.projection = SIZE
    puppet.contexts = lambda texts, runtime: (0.05 * torch.randn(len(texts), SIZE), 0)
    torch.manual_seed(0)
    found = TriggerInversion(molecules=600, steps=1, prompts=50).scan(prompts(0), RUNTIME, puppet)
    assert found.backdoored is None
    assert "a push was found for only 0 of" in found.reason


@pytest.mark.parametrize(
    "scanner", [PromptMasking(prompts=5), TriggerInversion(molecules=20)], ids=["PromptMasking", "TriggerInversion"]
)
def test_a_generator_is_moved_to_the_device_before_it_is_asked(scanner: MoleculeScanner) -> None:
    """The texts go to the device; on a GPU a generator that stayed behind could not read them."""
    puppet: Any = Puppet()
    events: list[object] = []
    read = puppet.contexts

    def to(place: torch.device) -> Any:
        events.append(place)
        return puppet

    def contexts(*given: Any) -> Any:
        events.append("read")
        return read(*given)

    puppet.to, puppet.contexts = to, contexts
    scanner.scan(prompts(0), RUNTIME, puppet)
    assert events[:2] == [RUNTIME.place, "read"]
    assert not puppet.training


def test_the_discriminant_is_fishers() -> None:
    """Two round Gaussians: along the difference of the means, and 0 half-way between them for equal shares."""
    draws = torch.Generator().manual_seed(0)
    there = torch.zeros(20_000, 1)
    there[:10_000] = 1
    latent = torch.randn(20_000, 3, generator=draws) + there * torch.tensor([2.0, 0.0, 0.0])
    weight, bias = discriminants(latent, there)
    assert weight[0].tolist() == pytest.approx([2, 0, 0], abs=0.06)
    assert float(bias[0] / weight[0, 0]) == pytest.approx(-1, abs=0.03)
    # A quarter as many: less likely by the logarithm of four.
    few, shares = latent[7500:], there[7500:]
    _, rarer = discriminants(few, shares)
    assert float(rarer[0] - bias[0]) == pytest.approx(-np.log(4), abs=0.15)


def test_sizes_are_compared_at_the_same_frequency() -> None:
    frequency = np.geomspace(0.01, 0.4, 20)
    draws = np.random.default_rng(0)
    sizes = frequency**-0.5 * np.exp(0.05 * draws.standard_normal(20))
    sizes[3] /= 2
    # The smallest of all belongs to the most frequent motif, and is usual.
    assert sizes.argmin() != 3
    unusual = unusually_small(sizes, frequency)
    assert unusual.argmax() == 3
    assert unusual[3] > 5
    assert unusual[19] < 3
    sizes[5] = np.inf
    assert np.isnan(unusually_small(sizes, frequency)[5])
    assert np.isnan(unusually_small(sizes[:5], frequency[:5])).all()


@pytest.mark.parametrize(
    ("scanner", "options"),
    [
        (PromptMasking, {"influence": 0}),
        (PromptMasking, {"prompts": 1}),
        (TriggerInversion, {"anomaly": 0}),
        (TriggerInversion, {"steps": 0}),
        (TriggerInversion, {"success": 1.5}),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(scanner: type, options: dict[str, Any]) -> None:
    refused(scanner, options)
