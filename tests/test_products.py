"""Products by tiles against NumPy's in float64, of every shape and every way that matrices lie in memory."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import skiprec.products
from skiprec.products import LANES, SUMMED_AT_ONCE, TILE_COLUMNS, TILE_ROWS, multiply


def draws(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def within(rows: int, columns: int, fill: float) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with other numbers on all sides, and all of them."""
    around = np.full((rows + 4, columns + 2 * LANES), np.float32(fill))
    return around[2 : 2 + rows, LANES : LANES + columns], around


EDGES = st.sampled_from
ROWS = EDGES([1, 2, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, 2 * TILE_ROWS, 2 * TILE_ROWS + 1, 23])
TERMS = EDGES([1, 2, 20, SUMMED_AT_ONCE - 1, SUMMED_AT_ONCE, SUMMED_AT_ONCE + 1, 2 * SUMMED_AT_ONCE + 5])
COLUMNS = EDGES(
    [1, 3, LANES, LANES + 1, TILE_COLUMNS // 2, TILE_COLUMNS // 2 + 1, TILE_COLUMNS, TILE_COLUMNS + 1, 3 * TILE_COLUMNS]
)


@settings(max_examples=150, deadline=None)
@given(R=ROWS, K=TERMS, C=COLUMNS, is_turned=st.booleans(), adds=st.booleans(), seed=st.integers(0, 9))
def test_it_is_the_product_and_touches_nothing_else(R, K, C, is_turned, adds, seed):
    """The matrices are parts of others full of nan, which would show in the result; around the result all stays."""
    a = within(*((K, R) if is_turned else (R, K)), np.nan)[0]
    a[:] = draws(*a.shape, seed=seed)
    a = a.T if is_turned else a
    b = within(K, C, np.nan)[0]
    b[:] = draws(K, C, seed=seed + 1)
    c, around = within(R, C, 7.0)
    c[:] = draws(R, C, seed=seed + 2)
    expected = a.astype(float) @ b.astype(float) + (c if adds else 0)
    before = around.copy()
    multiply(a, b, c, adds)
    np.testing.assert_allclose(c, expected, rtol=0, atol=3e-6 * (K + 4))
    before[2 : 2 + R, LANES : LANES + C] = c
    np.testing.assert_array_equal(around, before)


def test_a_number_depends_on_no_other_row_or_column():
    """To the last bit: how a product is shared among threads must not show."""
    a, b, whole = draws(37, 300), draws(300, 90, seed=2), np.empty((37, 90), np.float32)
    multiply(a, b, whole)
    for rows, columns in ((slice(0, 1), slice(0, 90)), (slice(5, 30), slice(3, 20)), (slice(36, 37), slice(89, 90))):
        part = np.empty_like(whole[rows, columns])
        multiply(a[rows], b[:, columns], part)
        np.testing.assert_array_equal(part, whole[rows, columns])


def test_long_sums_lose_few_digits():
    """A chain of 160,000 terms of one sign would be 3e-5 off; their blocks are summed apart."""
    a, b = abs(draws(3, 160_000)), abs(draws(160_000, 5, seed=2))
    c = np.empty((3, 5), np.float32)
    multiply(a, b, c)
    np.testing.assert_allclose(c, a.astype(float) @ b, rtol=5e-6)


def test_rows_with_gaps_are_refused():
    a, b, c = draws(3, 4), draws(4, 5), np.empty((3, 5), np.float32)
    for wrong in ((a, np.asfortranarray(b), c), (a, b, np.asfortranarray(c))):
        with pytest.raises(ValueError, match="gaps"):
            multiply(*wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows_in_its_row_and_column_alone(value):
    a, b, c = draws(12, 40), draws(40, 70, seed=2), np.empty((12, 70), np.float32)
    a[4, 7] = value
    multiply(a, b, c)
    assert not np.isfinite(c[4]).any()
    assert np.isfinite(np.delete(c, 4, axis=0)).all()


def test_without_rows_columns_or_terms():
    multiply(np.empty((0, 5), np.float32), draws(5, 3), np.empty((0, 3), np.float32))
    multiply(draws(4, 5), np.empty((5, 0), np.float32), np.empty((4, 0), np.float32))
    c = draws(4, 3)
    multiply(np.empty((4, 0), np.float32), np.empty((0, 3), np.float32), c)
    np.testing.assert_array_equal(c, np.zeros((4, 3)))


ELSEWHERE = """
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import skiprec.products
from skiprec.products import LANES, multiply
draw = np.random.default_rng(1).normal
for R, K, C in ((1, 1, 1), (7, 130, 5), (13, 20, 16), (31, 40, 70), (12, 300, 33)):
    a, b, c = (draw(size=shape).astype(np.float32) for shape in ((R, K), (K, C), (R, C)))
    expected = a.astype(float) @ b + c
    multiply(a, b, c, True)
    np.testing.assert_allclose(c, expected, rtol=0, atol=3e-6 * (K + 4))
print(LANES)
"""
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the names are those of x86 processors")


@needs_x86
@pytest.mark.parametrize(("name", "features", "lanes"), [("haswell", "+avx,+avx2,+fma", 8), ("x86-64", "", 4)])
def test_registers_of_other_machines(name, features, lanes, tmp_path):
    """As Numba compiles for them."""
    if features and not all(llvm.get_host_cpu_features().get(feature[1:]) for feature in features.split(",")):
        pytest.skip("this processor is older")
    other = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ELSEWHERE]
    done = subprocess.run(command, env=os.environ | other, capture_output=True, text=True, timeout=300)
    assert done.stdout == f"{lanes}\n", done.stderr


def test_a_change_here_is_compiled_into_what_calls_it(tmp_path):
    """Numba keeps compiled loops, and looks at the date of a loop's own file alone. (The change has another length, as
    Python itself looks at that and at whole seconds.)"""
    shutil.copytree(Path(skiprec.products.__file__).parent, tmp_path / "skiprec", ignore=lambda *_: ["__pycache__"])
    code = """
import numpy as np
from skiprec.block_kernels import sum_products
out = np.empty((1, 1), np.float32)
sum_products(np.full((2, 1), 3, np.float32), np.full((2, 1), 5, np.float32), out, 0, 1)
print(int(out[0, 0]))
"""
    printed = []
    for change in (("", ""), ("builder.fmul(number, vector, ", "builder.fadd( number, vector, ")):
        path = tmp_path / "skiprec" / "products.py"
        path.write_text(path.read_text().replace(*change))
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        printed.append(done.stdout)
    assert printed == ["30\n", "16\n"]
