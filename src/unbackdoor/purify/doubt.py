"""Clean samples that the model does not know: a repair would teach it what they are, right or wrong."""

from __future__ import annotations

import math

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.training import Runtime, logits_of

GAP = 0.2
"""Between confidence and accuracy: what well-trained networks show on images like those of their training is less."""


def doubts_about(clean: ImageSet, model: Network, runtime: Runtime) -> tuple[str, ...]:
    """Return a sentence if the model is confident of answers that the labels contradict, and otherwise none.

    On images of another distribution, and where labels are wrong, confidence stays and accuracy falls.

    Args:
        clean: what is said to be clean samples.
        model: the suspect; its mode is restored.
        runtime: device and precision.
    """
    images = clean.to(runtime.place)
    logits = logits_of(runtime.settle(model), images.images, runtime)
    accuracy = float((logits.argmax(1) == images.labels).float().mean())
    confidence = float(logits.softmax(1).amax(1).mean())
    # Few samples tell the accuracy badly.
    if confidence - accuracy <= GAP + 2 * math.sqrt(accuracy * (1 - accuracy) / len(images)):
        return ()
    return (
        f"The model is {100 * confidence:.0f} % sure of its answers to the clean samples on average, but only"
        f" {100 * accuracy:.0f} % of them agree with the labels: these images may be unlike those of its training, or"
        " some labels wrong. A repair teaches the model what they say; look at them before you trust it.",
    )
