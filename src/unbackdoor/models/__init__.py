"""Networks, reading and writing them safely, and looking inside."""

from unbackdoor.models.build import NETWORKS, build_network
from unbackdoor.models.checkpoint import LoadedModel, load_model, save_model
from unbackdoor.models.edits import Edit, insert_plug
from unbackdoor.models.feature_maps import feature_map_names, last_linear, vector_readers
from unbackdoor.models.network import Description, Network, Normalize
from unbackdoor.models.preact_resnet18 import PreActResNet18
from unbackdoor.models.resnet18 import ResNet18
from unbackdoor.models.taps import tapped
from unbackdoor.models.vgg19_bn import VGG19BN
from unbackdoor.models.wrn16x1 import WRN16x1

__all__ = [
    "NETWORKS",
    "VGG19BN",
    "Description",
    "Edit",
    "LoadedModel",
    "Network",
    "Normalize",
    "PreActResNet18",
    "ResNet18",
    "WRN16x1",
    "build_network",
    "feature_map_names",
    "insert_plug",
    "last_linear",
    "load_model",
    "save_model",
    "tapped",
    "vector_readers",
]
