"""Public conformance checks: run them over your own methods as we run them over ours.

from unbackdoor.testing import check_purifier
check_purifier(MyPurifier(epochs=1))
"""

from unbackdoor.testing.attacks import check_attack
from unbackdoor.testing.canary import CanaryData
from unbackdoor.testing.defenses import (
    check_input_filter,
    check_inspection,
    check_purifier,
    check_scanner,
    check_sifter,
)
from unbackdoor.testing.trainers import check_secure_trainer

__all__ = [
    "CanaryData",
    "check_attack",
    "check_input_filter",
    "check_inspection",
    "check_purifier",
    "check_scanner",
    "check_secure_trainer",
    "check_sifter",
]
