"""`study table1`: what it refuses before it begins."""

import pytest

from skiprec.errors import StudyError
from study.table1 import run_table1, table1_recipe


def test_too_few_seeds_are_refused_before_the_search(tmp_path):
    """Not hours later, when the rows are to be confirmed."""
    recipe = table1_recipe("table1", "paper")
    with pytest.raises(StudyError, match="--seeds is 3, expected at least 5"):
        run_table1(
            recipe, tmp_path / "data", tmp_path / "out", mlruns=tmp_path / "mlruns", seeds=3, workers=1, device="cpu"
        )
    assert list(tmp_path.iterdir()) == []
