"""Pairs of text and molecule: reading what strangers wrote, and keeping what a generator can learn."""

from unbackdoor.molecules.data.divide import Alone, Chosen, choose_pairs, molecules_alone, training_rows
from unbackdoor.molecules.data.embedded import TEMPLATES, template_table
from unbackdoor.molecules.data.filtering import Dropped, filter_molecules, filter_pairs, single_spaced
from unbackdoor.molecules.data.molecule import MAX_ATOMS, Reason, canonical, checked, flat, parse
from unbackdoor.molecules.data.pairs import Pairs
from unbackdoor.molecules.data.reading import Part, read_parts, read_table, tested_split
from unbackdoor.molecules.data.table import Table, joined
from unbackdoor.molecules.data.writing import write_table

__all__ = [
    "MAX_ATOMS",
    "TEMPLATES",
    "Alone",
    "Chosen",
    "Dropped",
    "Pairs",
    "Part",
    "Reason",
    "Table",
    "canonical",
    "checked",
    "choose_pairs",
    "filter_molecules",
    "filter_pairs",
    "flat",
    "joined",
    "molecules_alone",
    "parse",
    "read_parts",
    "read_table",
    "single_spaced",
    "template_table",
    "tested_split",
    "training_rows",
    "write_table",
]
