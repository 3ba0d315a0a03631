"""What every transform promises: exact replay, independent images, range, identity, gradients, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unbackdoor.data.augment import (
    AUGMENTATIONS,
    Augmentation,
    ColorJitter,
    CutMix,
    Flip,
    Grey,
    PadCrop,
    ResizeCrop,
    Rotate,
    Transform,
    Translate,
)
from unbackdoor.errors import InputError

MOVERS = [PadCrop(), Translate(fraction=0.3), Flip(), CutMix(probability=1.0)]
COMPUTERS = [Rotate(degrees=30.0), ResizeCrop(), ColorJitter(), Grey(probability=0.5)]
TRANSFORMS = [*MOVERS, *COMPUTERS]
IDENTITIES = [
    PadCrop(padding=0),
    Translate(fraction=0.0),
    Flip(probability=0.0),
    CutMix(probability=0.0),
    ColorJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0),
    Grey(probability=0.0),
    Rotate(degrees=0.0),
    ResizeCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0)),
]


def name(transform: Transform) -> str:
    return type(transform).__name__


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bytes_like(shape: tuple[int, int, int, int], seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=seeded(seed), dtype=torch.uint8)


def floats_like(shape: tuple[int, int, int, int], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=seeded(seed))


shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 12), st.integers(1, 12))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=name)
def test_a_draw_replays_exactly_and_changes_the_images(transform: Transform) -> None:
    shape = (16, 3, 10, 14)
    images = floats_like(shape)
    draw = transform.draw(shape, seeded(1))
    first = transform.apply(images, draw)
    assert not torch.equal(first, images)
    assert torch.equal(images, floats_like(shape)), "the given images stay as they are"
    assert torch.equal(transform.apply(images, transform.draw(shape, seeded(1))), first)
    assert not torch.equal(transform.apply(images, transform.draw(shape, seeded(2))), first)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=name)
def test_the_draw_has_the_batch_first_and_ignores_the_global_generator(transform: Transform) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    draw = transform.draw((7, 3, 9, 5), seeded())
    assert {len(values) for values in draw.values()} == {7}
    transform.apply(floats_like((7, 3, 9, 5)), draw)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("transform", [each for each in TRANSFORMS if not each.mixes], ids=name)
def test_a_part_of_the_batch_with_its_part_of_the_draw_gives_the_same_images(transform: Transform) -> None:
    images = floats_like((9, 3, 11, 8))
    draw = transform.draw((9, 3, 11, 8), seeded(3))
    rows = torch.tensor([7, 0, 4])
    alone = transform.apply(images[rows], {key: values[rows] for key, values in draw.items()})
    torch.testing.assert_close(alone, transform.apply(images, draw)[rows], rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=st.integers(0, 1000), extreme=st.booleans())
def test_any_size_and_channel_count_gives_the_same_shape_within_the_range(
    shape: tuple[int, int, int, int], seed: int, extreme: bool
) -> None:
    images = floats_like(shape, seed)
    if extreme:
        images = images.round()
    for transform in TRANSFORMS:
        changed = transform.apply(images, transform.draw(shape, seeded(seed)))
        assert changed.shape == images.shape
        assert changed.dtype == images.dtype
        assert changed.min() >= 0, transform
        assert changed.max() <= 1, transform


@settings(max_examples=25, deadline=None)
@given(shape=shapes, seed=st.integers(0, 1000))
def test_parameters_of_no_change_are_the_identity(shape: tuple[int, int, int, int], seed: int) -> None:
    images = floats_like(shape, seed)
    for transform in IDENTITIES:
        changed = transform.apply(images, transform.draw(shape, seeded(seed)))
        interpolates = isinstance(transform, Rotate | ResizeCrop)
        torch.testing.assert_close(changed, images, rtol=0, atol=1e-5 if interpolates else 0, msg=str(transform))


@pytest.mark.parametrize("transform", MOVERS, ids=name)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_movers_give_the_same_pixels_for_bytes_and_floats(transform: Transform, layout: torch.memory_format) -> None:
    images = bytes_like((6, 3, 9, 7)).contiguous(memory_format=layout)
    draw = transform.draw((6, 3, 9, 7), seeded())
    moved = transform.apply(images, draw)
    assert moved.dtype == torch.uint8
    assert torch.equal(moved.float() / 255, transform.apply(images.float() / 255, draw))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=name)
def test_gradients_are_those_of_finite_differences(transform: Transform) -> None:
    shape = (3, 3, 4, 5)
    images = (0.1 + 0.6 * floats_like(shape)).double().requires_grad_()
    draw = transform.draw(shape, seeded(1))
    assert torch.autograd.gradcheck(lambda pixels: transform.apply(pixels, draw), (images,), atol=1e-5)


def applied(augmentation: Augmentation, images: Tensor) -> Tensor:
    """Return the images alone, also of an augmentation that mixes."""
    batch, channels, height, width = images.shape
    return augmentation.apply(images, augmentation.draw((batch, channels, height, width), seeded()))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_gradients_reach_float_images_through_an_augmentation(augmentation: Augmentation) -> None:
    # Grey and saturated pixels, where a hue has no derivative.
    images = torch.cat((torch.full((4, 3, 8, 8), 0.5), torch.ones(4, 3, 8, 8), torch.zeros(4, 3, 8, 8)))
    images.requires_grad_()
    applied(augmentation, images).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("images", [bytes_like((5, 3, 12, 10)), floats_like((5, 3, 12, 10))], ids=["bytes", "floats"])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_an_augmentation_returns_float32_in_channels_last(augmentation: Augmentation, images: Tensor) -> None:
    changed = applied(augmentation, images)
    assert changed.dtype == torch.float32
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert changed.min() >= 0
    assert 0.5 < changed.max() <= 1


def test_no_transforms_only_convert_to_fractions_of_255() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = torch.tensor([value / 255 for value in range(256)]).view(1, 1, 16, 16)
    assert torch.equal(Augmentation()(images, seeded()), expected)
    assert torch.equal(images.flatten(), torch.arange(256, dtype=torch.uint8)), "the given images stay as they are"


def test_float_images_are_not_divided_again_and_other_precisions_become_float32() -> None:
    images = floats_like((2, 3, 4, 4))
    assert torch.equal(Augmentation()(images, seeded()), images)
    converted = Augmentation()(images.double(), seeded())
    assert converted.dtype == torch.float32
    assert torch.equal(converted, images)


@pytest.mark.parametrize("as_bytes", [True, False])
def test_transforms_are_applied_one_after_the_other(as_bytes: bool) -> None:
    """Also a mover after the conversion to float."""
    transforms = (PadCrop(padding=3), Rotate(degrees=90.0), Flip(), ColorJitter())
    images = bytes_like((8, 3, 10, 10))
    draws = Augmentation(transforms).draw((8, 3, 10, 10), seeded(4))
    expected = images.float() / 255
    for transform, draw in zip(transforms, draws, strict=True):
        expected = transform.apply(expected, draw)
    given_images = images if as_bytes else images.float() / 255
    assert torch.equal(Augmentation(transforms).apply(given_images, draws), expected)


def test_calling_draws_and_applies() -> None:
    augmentation, images = AUGMENTATIONS["strong"], bytes_like((8, 3, 10, 10))
    draws = augmentation.draw((8, 3, 10, 10), seeded(5))
    assert torch.equal(augmentation(images, seeded(5)), augmentation.apply(images, draws))


def test_the_names_of_configuration_files_mean_what_is_documented() -> None:
    assert {key: augmentation.transforms for key, augmentation in AUGMENTATIONS.items()} == {
        "none": (),
        "crop": (PadCrop(padding=4),),
        "crop-flip": (PadCrop(padding=4), Flip(probability=0.5)),
        "light": (PadCrop(padding=2), Flip(probability=0.5)),
        "rotate-translate": (Translate(), Rotate()),
        "cutmix": (PadCrop(padding=4), Flip(probability=0.5), CutMix()),
        "strong": (ResizeCrop(), Flip(), ColorJitter(), Grey()),
    }


def test_an_augmentation_mixes_targets_through_its_transforms_and_says_whether_it_does() -> None:
    plain, mixing = AUGMENTATIONS["strong"], Augmentation((Flip(), CutMix(probability=1.0)))
    assert (plain.mixes, mixing.mixes) == (False, True)
    labels = torch.arange(6)
    assert plain.mix(labels, plain.draw((6, 3, 8, 8), seeded())) is labels
    targets, draws = torch.eye(6), mixing.draw((6, 3, 8, 8), seeded())
    assert torch.equal(mixing.mix(targets, draws), CutMix().mix(targets, draws[1]))
    assert not torch.equal(mixing.mix(targets, draws), targets)


@pytest.mark.parametrize("transform", COMPUTERS, ids=name)
def test_transforms_that_compute_refuse_bytes(transform: Transform) -> None:
    with pytest.raises(InputError, match=rf"{name(transform)} needs .*floating point.*uint8.*convert"):
        transform.apply(bytes_like((2, 3, 4, 4)), transform.draw((2, 3, 4, 4), seeded()))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_other_types_of_pixels_are_refused(augmentation: Augmentation) -> None:
    with pytest.raises(InputError, match=r"int64.*convert"):
        applied(augmentation, torch.zeros(2, 3, 4, 4, dtype=torch.int64))


def test_draws_of_another_batch_or_augmentation_are_refused() -> None:
    light = AUGMENTATIONS["light"]
    with pytest.raises(InputError, match=r"the draw is for \[3\] images, the batch has 2"):
        light.apply(bytes_like((2, 3, 4, 4)), light.draw((3, 3, 4, 4), seeded()))
    with pytest.raises(InputError, match=r"2 transforms need as many draws, found 1"):
        light.apply(bytes_like((2, 3, 4, 4)), AUGMENTATIONS["crop"].draw((2, 3, 4, 4), seeded()))


def test_calling_an_augmentation_that_mixes_is_refused_as_its_targets_would_be_wrong() -> None:
    with pytest.raises(InputError, match=r"use draw, apply and mix"):
        Augmentation((CutMix(),))(bytes_like((2, 3, 4, 4)), seeded())


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (PadCrop, {"padding": -1}),
        (Flip, {"probability": 1.5}),
        (Grey, {"probability": -0.1}),
        (CutMix, {"probability": 2.0}),
        (CutMix, {"alpha": 0.0}),
        (Rotate, {"degrees": -1.0}),
        (Translate, {"fraction": 1.1}),
        (ResizeCrop, {"scale": (0.0, 1.0)}),
        (ResizeCrop, {"scale": (0.9, 0.5)}),
        (ResizeCrop, {"scale": (0.5, 1.5)}),
        (ResizeCrop, {"ratio": (2.0, 1.0)}),
        (ColorJitter, {"brightness": -0.1}),
        (ColorJitter, {"contrast": float("nan")}),
        (ColorJitter, {"hue": 0.6}),
    ],
)
def test_impossible_parameters_are_refused_by_name(kind: type[Transform], wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=rf"{kind.__name__}: {next(iter(wrong))} must"):
        kind(**wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("transform", TRANSFORMS, ids=name)
def test_the_same_draw_gives_the_same_images_on_a_gpu(transform: Transform) -> None:
    images = floats_like((6, 3, 12, 10))
    draw = transform.draw((6, 3, 12, 10), seeded())
    torch.testing.assert_close(
        transform.apply(images.cuda(), draw).cpu(), transform.apply(images, draw), rtol=0, atol=1e-5
    )
