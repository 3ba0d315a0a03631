"""A recovered distribution of triggers, as a page shows it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unbackdoor.report.charts import series_chart
from unbackdoor.report.content import Chart, Gallery, Picture
from unbackdoor.scan import TriggerDistribution

MOST_CLASSES = 2
"""Whose distributions are shown."""
SIDE = 8
"""Triggers in a row, and in a column, of a picture."""
POINTS = 300
"""Of each sub-model in the projection."""


def distribution_gallery(found: Sequence[TriggerDistribution], class_names: Sequence[str]) -> Gallery:
    """Return triggers that each sub-model draws, side by side.

    Args:
        found: one or more distributions, most suspicious first.
        class_names: of the model.
    """
    pictures = []
    for one in found[:MOST_CLASSES]:
        for number, (beta, share) in enumerate(zip(one.betas, one.success.tolist())):
            triggers = one.sample(SIDE * SIDE, torch.Generator().manual_seed(number), of=number)
            name, worked = class_names[one.target], f"{100 * share:.0f} %"
            caption = f"triggers for {name}, beta {beta:g}: they led {worked} of other images there"
            pictures.append(Picture(caption=caption, image=mosaic(triggers)))
    return Gallery(
        title="Triggers that were learned",
        explanation="Not one trigger but as many different ones as lead to the class, drawn from a generator for each"
        " threshold beta. If a model is backdoored, the attacker's own is one of many.",
        pictures=pictures,
    )


def distribution_chart(found: TriggerDistribution, name: str, original: Float[Tensor, "c p p"] | None = None) -> Chart:
    """Draw triggers of each sub-model as points, in the plane in which they differ most.

    Args:
        found: the distribution.
        name: of its class.
        original: the attacker's trigger, where it is known; a point of its own if it has the shape of the others.
    """
    # Slow to import, and few pages need it.
    from sklearn.decomposition import PCA

    samples = {
        f"beta {beta:g}": found.sample(POINTS, torch.Generator().manual_seed(number), of=number).flatten(1).numpy()
        for number, beta in enumerate(found.betas)
    }
    if original is not None and original.shape == found.shape:
        samples["the original trigger"] = original.cpu().flatten()[None].numpy()
    drawn = [values for series, values in samples.items() if series.startswith("beta")]
    # Triggers of one number differ in one direction alone, which is drawn as a diagonal.
    plane = PCA(min(2, drawn[0].shape[1]), random_state=0).fit(torch.cat([torch.from_numpy(one) for one in drawn]))
    series = {}
    for label, values in samples.items():
        points = plane.transform(values)
        series[label] = (points[:, 0].tolist(), points[:, -1].tolist())
    explained = torch.from_numpy(plane.explained_variance_ratio_).nan_to_num()
    share = f"{100 * float(explained.sum()):.0f} %"
    return series_chart(
        series,
        marks="points",
        title=f"The triggers for {name}, in two dimensions",
        explanation=f"Each point is a trigger, seen in the plane in which triggers differ most ({share} of their"
        " variance). A cloud says that many triggers lead to the class; a dot, that the generator knows one.",
        x_title="first principal component",
        y_title="second principal component",
    )


def mosaic(triggers: Float[Tensor, "n c p p"]) -> Float[Tensor, "c h w"]:
    """Return a square number of triggers as one picture, with lines between them."""
    side = int(len(triggers) ** 0.5)
    framed = F.pad(triggers, (0, 1, 0, 1), value=1.0)
    count, channels, height, width = framed.shape
    rows = framed.view(side, count // side, channels, height, width).permute(2, 0, 3, 1, 4)
    return rows.reshape(channels, side * height, -1)[:, :-1, :-1]
