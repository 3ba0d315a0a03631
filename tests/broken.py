"""Methods that break one rule each, to prove that the conformance checks can fail."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from unbackdoor.attacks import POISON, Attack, BadNets, FittedAttack, Stamp
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify import FT, Purifier
from unbackdoor.scan import Finding, Scanner, TriggerDistribution
from unbackdoor.scan.stacked import Generators
from unbackdoor.secure import Part, SecureTrainer, Trained
from unbackdoor.sift import InputFilter, Sifter, Suspicion
from unbackdoor.sift.observed import Observed
from unbackdoor.testing.samples import sample_network
from unbackdoor.training import Batch, History, Hook, Recipe, Runtime, fit


@dataclass(frozen=True, kw_only=True)
class ChangesItsTrainingSet(BadNets):
    def prepare(
        self, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime, work: Path | None = None
    ) -> FittedAttack:
        fitted = super().prepare(train, build_model, runtime, work)
        train.images[0] = 7
        return fitted


@dataclass(frozen=True, kw_only=True)
class DrawsRowsWithoutTheSeed(BadNets):
    def prepare(
        self, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime, work: Path | None = None
    ) -> FittedAttack:
        return super().prepare(train, build_model, replace(runtime, seed=int(torch.randint(2**31, (1,)))), work)


@dataclass(frozen=True, kw_only=True)
class Spoils(BadNets):
    """Changes what BadNets has fitted, by `spoil(fitted, train)`."""

    spoil: Callable[[FittedAttack, ImageSet], FittedAttack]

    def prepare(
        self, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime, work: Path | None = None
    ) -> FittedAttack:
        return self.spoil(super().prepare(train, build_model, runtime, work), train)


def with_trigger(kind: type[Stamp]) -> Attack:
    """Return BadNets whose trigger is of another kind from the start, as far as the disk knows: a Stamp."""

    def spoil(fitted: FittedAttack, train: ImageSet) -> FittedAttack:
        return replace(fitted, trigger=kind(**fitted.trigger.state_dict()))

    return Spoils(spoil=spoil)


class Idle(Stamp):
    def forward(self, images: Tensor) -> Tensor:
        return images.clone()


class Random(Stamp):
    def forward(self, images: Tensor) -> Tensor:
        return torch.rand_like(images)


class TooBright(Stamp):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * 1.1


class LooksAround(Stamp):
    def forward(self, images: Tensor) -> Tensor:
        return (super().forward(images) + images.mean()) / 2


class Crops(Stamp):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[..., 1:]


class NotInItsState(Stamp):
    """What it does is not in its buffers, so it is another after loading: the disk says Stamp."""

    def forward(self, images: Tensor) -> Tensor:
        return 1 - super().forward(images)


NotInItsState.__name__ = "Stamp"


def with_batches(spoil: Callable[[Batch, torch.Generator], Batch]) -> Attack:
    """Return an attack whose hook makes such batches."""

    class Online(Hook):
        def batch(self, model: nn.Module, batch: Batch, draws: torch.Generator) -> Batch:
            return spoil(batch, draws)

    return Spoils(spoil=lambda fitted, train: replace(fitted, hook=Online()))


def batch_changed_in_place(batch: Batch, draws: torch.Generator) -> Batch:
    batch.images[0] = 0
    return batch


def batch_of_another_shape(batch: Batch, draws: torch.Generator) -> Batch:
    return replace(batch, images=batch.images[..., 1:])


def batch_too_bright(batch: Batch, draws: torch.Generator) -> Batch:
    return replace(batch, images=batch.images + 1)


def batch_too_dark(batch: Batch, draws: torch.Generator) -> Batch:
    return replace(batch, images=batch.images - 1)


def batch_without_the_seed(batch: Batch, draws: torch.Generator) -> Batch:
    return replace(batch, images=batch.images * torch.rand(()))


def batch_with_labels_that_nobody_wants(batch: Batch, draws: torch.Generator) -> Batch:
    return replace(batch, targets=(batch.targets + 1) % 4)


def untouched_image_changed(fitted: FittedAttack, train: ImageSet) -> FittedAttack:
    images = fitted.train.images.clone()
    images[int((fitted.kinds != POISON).nonzero()[0])] ^= 1
    return replace(fitted, train=replace(fitted.train, images=images))


def true_label_changed(fitted: FittedAttack, train: ImageSet) -> FittedAttack:
    labels = fitted.train.labels.clone()
    row = int((fitted.kinds != POISON).nonzero()[0])
    labels[row] = (labels[row] + 1) % 4
    return replace(fitted, train=replace(fitted.train, labels=labels))


def poisoned_label_kept(fitted: FittedAttack, train: ImageSet) -> FittedAttack:
    return replace(fitted, train=replace(fitted.train, labels=train.labels))


def original_labels_lost(fitted: FittedAttack, train: ImageSet) -> FittedAttack:
    return replace(fitted, original_labels=fitted.train.labels)


def nothing_poisoned(fitted: FittedAttack, train: ImageSet) -> FittedAttack:
    return replace(fitted, train=train, kinds=torch.zeros_like(fitted.kinds))


def poisoned_rows_without_the_trigger(fitted: FittedAttack, train: ImageSet) -> FittedAttack:
    return replace(fitted, train=replace(fitted.train, images=train.images.clone()))


def one_poisoned_row_without_the_trigger(fitted: FittedAttack, train: ImageSet) -> FittedAttack:
    images = fitted.train.images.clone()
    row = int((fitted.kinds == POISON).nonzero()[0])
    images[row] = train.images[row]
    return replace(fitted, train=replace(fitted.train, images=images))


def fainter_in_training(fitted: FittedAttack, train: ImageSet) -> FittedAttack:
    """Honest: half of the change that the trigger makes in testing."""
    images = (fitted.train.images.float() + train.images.float()) / 2
    return replace(fitted, train=replace(fitted.train, images=images.to(torch.uint8)))


Repair = Callable[[Network, Network, DefenderData, Runtime], Network]


@dataclass(frozen=True, kw_only=True)
class Purifies(Purifier):
    """Returns what `how(model, copy of the model, data, runtime)` returns."""

    how: Repair

    def purify(
        self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None = None
    ) -> tuple[Network, History]:
        return self.how(model, copy.deepcopy(model), data, runtime), History(epochs=1)

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        raise NotImplementedError


def honest(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    with torch.no_grad():
        next(own.parameters()).add_(torch.rand((), generator=runtime.generator("draw")))
    return own


def returns_its_input(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    return model


def changes_weights(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    return sample_network(model.description.image_shape)


def changes_statistics(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    model.body[1].running_mean.add_(1)
    return sample_network(model.description.image_shape)


def changes_mode(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    model.train()
    return own.eval()


def freezes(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    model.requires_grad_(False)
    return own


def leaves_gradients(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    clean = data.need_clean("test")
    model(clean.images.float() / 255).sum().backward()
    return own


def leaves_a_hook_on_the_model(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    model.body[0].register_forward_pre_hook(lambda *_: None)
    return sample_network(model.description.image_shape)


def leaves_a_hook_on_the_result(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    own.body.register_forward_hook(lambda *_: None)
    return own


def leaves_it_in_training(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    return own.train()


def answers_with_fewer_classes(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    own.body = nn.Sequential(own.body, nn.AdaptiveAvgPool1d(2))
    return own


def answers_with_no_numbers(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    with torch.no_grad():
        next(own.parameters()).fill_(math.inf)
    return own


def draws_without_the_seed(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    with torch.no_grad():
        next(own.parameters()).add_(torch.randn(()))
    return own


def shares_weights(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    own.body[7] = model.body[7]
    return own


def changes_the_samples(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    data.need_clean("test").images[0] = 0
    return own


def refuses(model: Network, own: Network, data: DefenderData, runtime: Runtime) -> Network:
    raise InputError("not this one")


@dataclass(frozen=True, kw_only=True)
class Scans(Scanner):
    """Finds the anomalies that `how(model, data, runtime)` returns; `scan` hands it what it was given itself."""

    how: Callable[[Network, DefenderData, Runtime], Tensor]

    def scan(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        return self.inspect(model, data, runtime)

    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        anomaly = self.how(model, data, runtime)
        return Finding(backdoored=False, suspected=(), calibrated=False, anomaly=anomaly, threshold=2.0)


@dataclass(frozen=True, kw_only=True)
class Learns(Scans):
    """Says that triggers of these targets and this size were learned; the generators' weights come from `seed`."""

    how: Callable[[Network, DefenderData, Runtime], Tensor] = field(default=lambda *_: torch.zeros(4))
    targets: tuple[int, ...] = (2,)
    size: int = 3
    seed: Callable[[], int] = field(default=lambda: 0)
    factor: float = 1.0

    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        shape = (model.description.image_shape[0], self.size, self.size)
        draws = torch.Generator().manual_seed(self.seed())
        made = TriggerDistribution(
            target=0,
            betas=(0.9,),
            generators=_Scaled(1, shape, 4, draws).eval(),
            noise=0.1,
            information=torch.zeros(1),
            success=torch.ones(1),
        )
        made.generators.factor = self.factor
        finding = super().inspect(model, data, runtime)
        return replace(finding, distributions=tuple(replace(made, target=target) for target in self.targets))


class _Scaled(Generators):
    factor: float

    def forward(self, noise: Tensor) -> Tensor:
        return self.factor * super().forward(noise)


def looks_at_the_first_samples(model: Network, data: DefenderData, runtime: Runtime) -> Tensor:
    clean = data.need_clean("test")
    return clean.images[: clean.classes].float().mean((1, 2, 3))


def looks_at_all_samples(model: Network, data: DefenderData, runtime: Runtime) -> Tensor:
    clean = data.need_clean("test")
    means = clean.images.double().mean((1, 2, 3))
    return torch.stack([means[clean.labels == c].mean() for c in range(clean.classes)])


def scans_without_the_seed(model: Network, data: DefenderData, runtime: Runtime) -> Tensor:
    return torch.rand(4)


def forgets_a_class(model: Network, data: DefenderData, runtime: Runtime) -> Tensor:
    return torch.zeros(3)


def trains_the_model(model: Network, data: DefenderData, runtime: Runtime) -> Tensor:
    model.train()(data.need_clean("test").images.float() / 255)
    model.eval()
    return torch.zeros(4)


def hooks_the_model(model: Network, data: DefenderData, runtime: Runtime) -> Tensor:
    model.body[0].register_full_backward_hook(lambda *_: None)
    return torch.zeros(4)


@dataclass(frozen=True, kw_only=True)
class LeavesAHookInRepair(FT):
    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        model.body.register_forward_hook(lambda *_: None)
        return History(epochs=1)


def nothing(trained: Trained, data: DefenderData) -> Trained:
    return trained


class OneLayer(Part):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)


@dataclass(frozen=True, kw_only=True)
class Trains(SecureTrainer):
    """Trains plainly, and returns what `fault` makes of the result; without `resumes`, it adds up what it was given."""

    fault: Callable[[Trained, DefenderData], Trained] = nothing
    resumes: bool = True

    def train(
        self,
        build_model: Callable[[], Network],
        data: DefenderData,
        runtime: Runtime,
        resume: Path | None = None,
    ) -> Trained:
        return self.fault(super().train(build_model, data, runtime, resume), data)

    def learn(
        self, build_model: Callable[[], Network], data: DefenderData, runtime: Runtime, resume: Path | None
    ) -> Trained:
        model, part = build_model(), OneLayer()
        with torch.no_grad():
            for value in part.parameters():
                value.fill_(1)
        recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.01)
        history = fit(model, data.need_untrusted("test"), recipe, runtime, resume=resume)
        if resume is not None and not self.resumes:
            with torch.no_grad():
                next(model.parameters()).add_(1)
        return Trained(network=model, history=history, parts={"part": part})


def hooks_the_result(trained: Trained, data: DefenderData) -> Trained:
    trained.network.body.register_forward_hook(lambda *_: None)
    return trained


def keeps_training(trained: Trained, data: DefenderData) -> Trained:
    trained.network.train()
    return trained


def keeps_training_a_part(trained: Trained, data: DefenderData) -> Trained:
    trained.parts["part"].train()
    return trained


def unseeded() -> Tensor:
    """Return a random number, also where `fit` has just seeded the global generator."""
    generator = torch.Generator()
    generator.seed()
    return torch.rand((), generator=generator)


def adds_weights_without_the_seed(trained: Trained, data: DefenderData) -> Trained:
    with torch.no_grad():
        next(trained.network.parameters()).add_(unseeded())
    return trained


def adds_weights_of_a_part_without_the_seed(trained: Trained, data: DefenderData) -> Trained:
    with torch.no_grad():
        next(trained.parts["part"].parameters()).add_(unseeded())
    return trained


def changes_the_untrusted_data(trained: Trained, data: DefenderData) -> Trained:
    data.need_untrusted("test").images[0] = 0
    return trained


def calls_it_another_network(trained: Trained, data: DefenderData) -> Trained:
    trained.network.description = replace(trained.network.description, architecture="another")
    return trained


def gives_a_layer_more(trained: Trained, data: DefenderData) -> Trained:
    trained.network.body.append(nn.Linear(4, 4).eval())  # type: ignore[operator]
    return trained


def gives_nonsense(trained: Trained, data: DefenderData) -> Trained:
    with torch.no_grad():
        next(trained.network.parameters()).fill_(torch.nan)
    return trained


def refuses_to_train(trained: Trained, data: DefenderData) -> Trained:
    raise InputError("not this one")


Sift = Callable[[DefenderData, Runtime, Network | None], Tensor]
"""Returns the scores of the rows."""


@dataclass(frozen=True, kw_only=True)
class Sifts(Sifter):
    """Scores rows by `how(data, runtime, model)`."""

    how: Sift

    def score(
        self, data: DefenderData, runtime: Runtime, model: Network | None = None, resume: Path | None = None
    ) -> Suspicion:
        scores = self.how(data, runtime, model)
        nothing = torch.zeros(len(scores), dtype=torch.bool)
        return Suspicion(scores=scores, clean=nothing, poisoned=nothing)

    def inspect(self, seen: Observed) -> Suspicion:
        raise NotImplementedError


def by_brightness(data: DefenderData, runtime: Runtime, model: Network | None) -> Tensor:
    return data.need_untrusted("test").images.float().mean((1, 2, 3))


def by_chance(data: DefenderData, runtime: Runtime, model: Network | None) -> Tensor:
    return torch.rand(len(data.need_untrusted("test")))


def by_row_number(data: DefenderData, runtime: Runtime, model: Network | None) -> Tensor:
    return torch.arange(float(len(data.need_untrusted("test"))))


def forgets_a_row(data: DefenderData, runtime: Runtime, model: Network | None) -> Tensor:
    return by_brightness(data, runtime, model)[1:]


def trains_what_it_was_given(data: DefenderData, runtime: Runtime, model: Network | None) -> Tensor:
    if model is not None:
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
    return by_brightness(data, runtime, model)


def hooks_what_it_was_given(data: DefenderData, runtime: Runtime, model: Network | None) -> Tensor:
    if model is not None:
        model.register_forward_hook(lambda module, inputs, output: output)
    return by_brightness(data, runtime, model)


def changes_the_rows(data: DefenderData, runtime: Runtime, model: Network | None) -> Tensor:
    scores = by_brightness(data, runtime, model)
    data.need_untrusted("test").labels[0] = 1
    return scores


def refuses_rows(data: DefenderData, runtime: Runtime, model: Network | None) -> Tensor:
    raise InputError("never")


Filter = Callable[[Network, Tensor, Runtime], Tensor]
"""Returns the scores of images."""


@dataclass(frozen=True, kw_only=True)
class Filters(InputFilter):
    """Scores images by `how(model, images, runtime)`, which gets the very model and all images at once."""

    how: Filter

    def score(self, model: Network, images: Tensor, runtime: Runtime) -> Tensor:
        return self.how(model, images, runtime)

    def inspect(self, model: Network, images: Tensor, runtime: Runtime) -> Tensor:
        raise NotImplementedError


def by_light(model: Network, images: Tensor, runtime: Runtime) -> Tensor:
    return images.double().mean((1, 2, 3))


def without_the_seed(model: Network, images: Tensor, runtime: Runtime) -> Tensor:
    return torch.rand(len(images))


def by_place(model: Network, images: Tensor, runtime: Runtime) -> Tensor:
    return torch.arange(float(len(images)))


def by_rank(model: Network, images: Tensor, runtime: Runtime) -> Tensor:
    light = by_light(model, images, runtime)
    return torch.searchsorted(light.sort().values, light).double()


def forgets_an_image(model: Network, images: Tensor, runtime: Runtime) -> Tensor:
    return by_light(model, images, runtime)[1:]


def divides_by_nothing(model: Network, images: Tensor, runtime: Runtime) -> Tensor:
    return by_light(model, images, runtime) / 0


def always_scores(model: Network, images: Tensor, runtime: Runtime) -> Tensor:
    return by_light(model, images, runtime) if len(images) else torch.zeros(1)


def trains_the_filtered_model(model: Network, images: Tensor, runtime: Runtime) -> Tensor:
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    return by_light(model, images, runtime)


def darkens_the_images(model: Network, images: Tensor, runtime: Runtime) -> Tensor:
    images[:1] //= 2
    return torch.zeros(len(images))


def refuses_images(model: Network, images: Tensor, runtime: Runtime) -> Tensor:
    raise InputError("never")
