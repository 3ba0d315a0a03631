import pytest

pytest.importorskip("rdkit", reason="RDKit is not installed: pip install 'unbackdoor[molecules]'")
