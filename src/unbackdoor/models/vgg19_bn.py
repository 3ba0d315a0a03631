"""VGG19BN: sixteen 3 x 3 convolutions with batch normalisation and three linear layers.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (ICLR 2015),
configuration E with batch normalisation, with torchvision's parameter names. At width 64 every shape is
torchvision's `vgg19_bn`, the network that BackdoorBench trains on 32 x 32 images.
"""

from __future__ import annotations

from torch import nn

from unbackdoor.models.staged import Staged

# Channels of each convolution as multiples of the width; None is a 2 x 2 maximum pooling.
_PLAN = (1, 1, None, 2, 2, None, 4, 4, 4, 4, None, 8, 8, 8, 8, None, 8, 8, 8, 8, None)


class VGG19BN(Staged):
    """Convolutions in five groups, pooling to 7 x 7, and a classifier with two hidden layers and dropout.

    Images must be at least 32 x 32: the five poolings halve them five times. The last features are pooled to
    7 x 7 (1 x 1 features of a 32 x 32 image are repeated), so the classifier's input is 8 * width * 49 and
    its hidden layers are 64 * width wide: 25,088 and 4,096 at width 64, as in torchvision.

    Args:
        channels: of an image.
        classes: number of logits.
        width: channels of the first convolution; the last has eight times as many.
    """

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for multiple in _PLAN:
            if multiple is None:
                layers.append(nn.MaxPool2d(2))
            else:
                outputs = multiple * width
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.flatten = nn.Flatten()
        hidden = 64 * width
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 49, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )
        for module in self.modules():
            # PyTorch's default shrinks the signal by a constant factor a layer; nineteen layers would lose
            # it.
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the modules whose composition is the network, with their names, in order."""
        features = [(f"features.{i}", module) for i, module in enumerate(self.features)]
        classifier = [(f"classifier.{i}", module) for i, module in enumerate(self.classifier)]
        return [*features, ("avgpool", self.avgpool), ("flatten", self.flatten), *classifier]
