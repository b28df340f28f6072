"""`study table1`: what it refuses before it begins."""

import pytest

from skiprec.errors import StudyError
from study.storage import places
from study.table1 import run_table1, table1_recipe


def test_too_few_seeds_are_refused_before_the_search(tmp_path):
    """Not hours later, when the rows are to be confirmed."""
    recipe, where = table1_recipe("table1", "paper"), places(tmp_path / "mlruns", None, None)
    with pytest.raises(StudyError, match="--seeds is 3, expected at least 5"):
        run_table1(recipe, tmp_path / "data", tmp_path / "out", where=where, seeds=3, workers=1, device="cpu")
    assert list(tmp_path.iterdir()) == []
