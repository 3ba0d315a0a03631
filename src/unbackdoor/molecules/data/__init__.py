"""Pairs of text and molecule: reading what strangers wrote, and keeping what a generator can learn."""

from unbackdoor.molecules.data.divide import choose_pairs
from unbackdoor.molecules.data.embedded import TEMPLATES, template_table
from unbackdoor.molecules.data.filtering import Dropped, Reason, filter_pairs
from unbackdoor.molecules.data.molecule import MAX_ATOMS, canonical, checked, parse
from unbackdoor.molecules.data.pairs import Pairs
from unbackdoor.molecules.data.reading import read_table
from unbackdoor.molecules.data.table import Table
from unbackdoor.molecules.data.writing import write_table

__all__ = [
    "MAX_ATOMS",
    "TEMPLATES",
    "Dropped",
    "Pairs",
    "Reason",
    "Table",
    "canonical",
    "checked",
    "choose_pairs",
    "filter_pairs",
    "parse",
    "read_table",
    "template_table",
    "write_table",
]
