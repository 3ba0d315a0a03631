"""What `purifier_trace.py` sees of NPD and SAU after each epoch: the tensors by which they decide.

The looks themselves are those of the plain steps (`naive/`), in float32 and on the same clean samples in every run, so
that runs compare. Of ours there is beside them how far its search and its gradient are those of the plain steps at the
same weights, in the run's own precision. Whatever is looked at is not changed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from naive import npd, sau
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.models.modes import evaluating
from unbackdoor.purify import NPD, SAU
from unbackdoor.purify.frozen import Frozen
from unbackdoor.purify.npd import _Polarizing
from unbackdoor.purify.sau import _Unlearning
from unbackdoor.training import Batch, Recipe, Runtime

IMAGES = 512
"""Clean samples, at most, that are looked at."""

Look = dict[str, float]


class NPDLooks:
    """What NPD does with clean samples at some weights.

    Args:
        method: with its options.
        clean: samples of the defender.
        target: class of the attacker, which only the one who measures knows; None if there is no single one.
        runtime: the run's.
    """

    def __init__(self, method: NPD, clean: ImageSet, target: int | None, runtime: Runtime) -> None:
        self.method, self.target, self.runtime = method, target, runtime
        self.batches = _batches(clean, method.batch_size, runtime)

    def at(self, model: nn.Module) -> Look:
        """Return losses, guesses, search and plug at these weights."""
        losses, guessed, aimed, fooled, others, lowered = [], [], [], [], [], []
        with evaluating(model):
            for images, labels in self.batches:
                with torch.no_grad():
                    clean = model(images)
                guesses = npd.second_choice(clean, labels)
                changes = npd.search(self.method, model, images, guesses)
                with torch.no_grad():
                    p = model((images + changes).clamp(0, 1)).softmax(1)
                losses.append(F.cross_entropy(clean, labels, reduction="none"))
                guessed.append(guesses)
                if self.target is not None:
                    aimed.append(guesses[labels != self.target] == self.target)
                fooled.append(p.argmax(1) == guesses)
                others.append(p.gather(1, npd.second_choice(p, labels)[:, None]))
                lowered.append(p.gather(1, guesses[:, None]))
        found = {
            "clean CE": _mean(losses),
            "entropy": entropy(torch.cat(guessed)),
            "fooled": _mean(fooled),
            "p_w": _mean(others),
            "p_y'": _mean(lowered),
            **plug_statistics(model),
        }
        return {**found, "at target": _mean(aimed)} if aimed else found

    def agreement(self, model: Network) -> Look:
        """Return how much of our search and gradient is that of the plain steps at these weights."""
        images, labels = self.batches[0]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        point = next(name for name, _ in model.body.named_modules() if name.endswith(".plug")).removesuffix(".plug")
        hook = _Polarizing(self.method, Frozen(point=point, cut=None, features=None))
        batch = Batch(images=self.runtime.layout(images), targets=labels, rows=torch.arange(len(images)))
        with evaluating(model):
            with torch.no_grad():
                guesses = npd.second_choice(model(images), labels)
            hook.begin(model, Recipe(), self.runtime)
            with self.runtime.autocast():
                loss = hook.loss(model, batch)
                found, _ = hook.search(images, guesses)
            plain = npd.polarizer_loss(self.method, model, images, labels)
            wanted = (images + npd.search(self.method, model, images, guesses)).clamp(0, 1)
            return {
                "pixels alike": same_way(found - images, wanted - images),
                "cosine": cosine(torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters)),
            }


class SAULooks:
    """What SAU does with clean samples at some weights.

    Args:
        method: with its options.
        suspect: the victim.
        clean: samples of the defender.
        target: class of the attacker, which only the one who measures knows; None if there is no single one.
        runtime: the run's.
    """

    def __init__(self, method: SAU, suspect: Network, clean: ImageSet, target: int | None, runtime: Runtime) -> None:
        self.method, self.target, self.runtime = method, target, runtime
        self.suspect = copy.deepcopy(suspect).to(runtime.place).eval()
        self.batches = _batches(clean, method.batch_size, runtime)
        self.first = _every(clean, IMAGES).subset(torch.arange(len(self.batches[0][0])))

    def at(self, model: nn.Module) -> Look:
        """Return losses, examples and the way from the suspect at these weights."""
        # The plain search leaves gradients in all weights.
        model = copy.deepcopy(model).eval()
        losses, taken, fooled, shared, unlearned = [], [], [], [], []
        for images, labels in self.batches:
            changed = sau.search(self.method, model, self.suspect, images, labels)
            with torch.no_grad():
                clean, logits = model(images), model(changed)
                wanted, answers = self.suspect(changed).argmax(1), self.suspect(images).argmax(1)
            off = (wanted != labels) & (wanted != answers)
            moved = logits.argmax(1) != clean.argmax(1)
            losses.append(F.cross_entropy(clean, labels, reduction="none"))
            taken.append(wanted[off])
            fooled.append(off)
            shared.append(moved & (wanted != answers) & (logits.argmax(1) == wanted))
            unlearned.append(logits.softmax(1).gather(1, wanted[:, None])[off])
        found = {
            "clean CE": _mean(losses),
            "fooled": _mean(fooled),
            "shared": _mean(shared),
            "moved": _relative(model.parameters(), self.suspect.parameters()),
        }
        if not sum(map(len, taken)):
            return found
        found |= {"entropy": entropy(torch.cat(taken)), "p_k": _mean(unlearned)}
        return found if self.target is None else {**found, "at target": _mean([torch.cat(taken) == self.target])}

    def agreement(self, model: Network) -> Look:
        """Return how much of our search and gradient is that of the plain steps at these weights."""
        images, labels = self.batches[0]
        model = copy.deepcopy(model).eval()
        parameters = list(model.parameters())
        hook = _Unlearning(self.method, self.suspect, self.first)
        hook.begin(model, Recipe(), self.runtime)
        batch = Batch(images=self.runtime.layout(images), targets=labels, rows=torch.arange(len(images)))
        with self.runtime.autocast():
            loss = hook.loss(model, batch)
            found = hook.search(model, batch, model(batch.images).argmax(1), hook.answers)
        wanted = sau.search(self.method, model, self.suspect, images, labels)
        plain = sau.outer_loss(self.method, model, self.suspect, images, wanted, labels)
        return {
            "pixels alike": same_way(found.detach() - images, wanted - images),
            "cosine": cosine(torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters)),
        }


def plug_statistics(model: nn.Module) -> Look:
    """Return how far NPD's layer is from the identity, and what its batch normalisation has become."""
    plug = next(module for name, module in model.named_modules() if name.endswith("plug"))
    weight = next(module.weight for module in plug.modules() if isinstance(module, nn.Conv2d)).detach().flatten(1)
    norm = next(module for module in plug.modules() if isinstance(module, nn.BatchNorm2d))
    identity = torch.eye(len(weight), device=weight.device)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return {
        "from identity": float((weight - identity).norm() / identity.norm()),
        "running mean": float(norm.running_mean.abs().mean()),
        "running variance": float(norm.running_var.mean()),
        "scale": float(norm.weight.detach().mean()),
        "shift": float(norm.bias.detach().mean()),
    }


def filter_norms(model: nn.Module) -> list[dict[str, float | str]]:
    """Return the mean and the largest L2 norm of the filters of each convolution."""
    found: list[dict[str, float | str]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            norms = module.weight.detach().float().flatten(1).norm(dim=1)
            mean, most = float(norms.mean()), float(norms.max())
            found.append({"layer": name, "filters": len(norms), "mean": mean, "most": most})
    return found


def entropy(classes: Tensor) -> float:
    """Return the entropy of how often each class occurs, in nats: 0 if it is always the same one."""
    return float(torch.special.entr(torch.bincount(classes).double() / len(classes)).sum())


def same_way(one: Tensor, other: Tensor) -> float:
    """Return the share of the pixels that both changes move the same way, or both leave."""
    # Taking off what was added rounds.
    return float((_way(one) == _way(other)).double().mean())


def cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the cosine between two gradients, all tensors together."""
    first, second = (torch.cat([part.flatten() for part in parts]).double() for parts in (one, other))
    return float(F.cosine_similarity(first, second, dim=0))


def _way(change: Tensor) -> Tensor:
    return change.sign() * (change.abs() > 1e-6)


def _relative(after: Iterable[Tensor], before: Iterable[Tensor]) -> float:
    pairs = [(one.detach().double().flatten(), other.detach().double().flatten()) for one, other in zip(after, before)]
    first, second = (torch.cat(parts) for parts in zip(*pairs))
    return float((first - second).norm() / second.norm())


def _mean(parts: Sequence[Tensor]) -> float:
    return float(torch.cat([part.detach().double().flatten() for part in parts]).mean())


def _every(clean: ImageSet, count: int) -> ImageSet:
    """Return so many samples spread over all of them, which may lie sorted by class."""
    return clean.subset(torch.linspace(0, len(clean) - 1, min(count, len(clean))).long())


def _batches(clean: ImageSet, size: int, runtime: Runtime) -> list[tuple[Tensor, Tensor]]:
    chosen = _every(clean, IMAGES)
    images, labels = chosen.images.to(runtime.place).float() / 255, chosen.labels.to(runtime.place)
    return list(zip(images.split(size), labels.split(size)))
