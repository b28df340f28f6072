"""The best items in one pass over the table: those of a full sort, whoever shares the work."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import skiprec.best_items
from skiprec.best_items import best_by_sorting, best_items, outline_of

# R rows, B queries, D width.


def sorted_out(table, queries, left_out, k):
    """Every score in turn, the whole list sorted: the highest first, of equal ones the first row."""
    found = []
    for query, out in zip(queries.tolist(), left_out, strict=True):
        scores = [sum(a * b for a, b in zip(row, query, strict=True)) for row in table.tolist()]
        order = sorted((-score, place) for place, score in enumerate(scores) if place not in out)[:k]
        found.append(([place for _, place in order], [-score for score, _ in order]))
    return found


@contextlib.contextmanager
def patched(**values):
    """Constants of the module meanwhile: Hypothesis allows no fixture that does so once for all examples."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(skiprec.best_items, name, value)
        yield


@st.composite
def questions(draw):
    """Small whole numbers: sums are exact, and many scores are equal."""
    R, B, D = (draw(st.integers(1, most)) for most in (40, 5, 9))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    table, queries = (torch.from_numpy(numbers.integers(-2, 3, (n, D)).astype(np.float32)) for n in (R, B))
    left_out = [draw(st.lists(st.integers(0, R - 1), max_size=R + 3)) for _ in range(B)]
    return table, queries, left_out, draw(st.integers(1, R + 3))


@given(asked=questions(), threads=st.integers(1, 4), rows_at_once=st.integers(1, 50))
def test_the_best_are_those_of_a_full_sort(asked, threads, rows_at_once):
    """In their order, ties too; for one query and for many, by any number of threads, in blocks of any size."""
    table, queries, left_out, k = asked
    with patched(ROWS_AT_ONCE=rows_at_once, ROWS_OF_A_THREAD=1):
        assert best_items(*asked, threads=threads) == sorted_out(*asked)
        one, by_outline = (
            best_items(table, queries[:1], left_out[:1], k, threads=threads, outline=outline)
            for outline in (None, outline_of(table))
        )
    assert one == by_outline == sorted_out(table, queries[:1], left_out[:1], k)


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6, 0.0])
def test_an_outline_changes_nothing_of_what_is_found(spread):
    """Also where rows are so alike that 16 bits a number do not tell them apart; rows of zeros and of tiny numbers."""
    torch.manual_seed(1)
    table = torch.randn(1, 64) + spread * torch.randn(20_000, 64)
    table[::7] *= 1e-3
    table[5], table[11], table[13, 0], table[17] = 0, 1e-42, np.inf, np.nan
    outline = outline_of(table)
    for query in torch.randn(20, 1, 64):
        left_out = [[3, 4, 12_000]]
        plain = best_items(table, query, left_out, 30, threads=2)
        assert best_items(table, query, left_out, 30, threads=2, outline=outline) == plain


def test_an_outline_is_off_by_no_more_than_it_says():
    """In double precision, for queries of any direction, that of the rounding itself among them."""
    torch.manual_seed(1)
    table = torch.randn(500, 40) * torch.logspace(-6, 3, 500)[:, None]
    outline = outline_of(table)
    assert outline.steps.dtype == np.int16
    about = outline.steps * outline.scales[:, None].astype(np.float64)
    off = table.double().numpy() - about
    assert (np.abs(outline.steps).max(1) == 32_767).all()
    assert (np.linalg.norm(off, axis=1) <= outline.errors).all()
    assert (outline.errors < 1e-4 * np.linalg.norm(table.numpy(), axis=1)).all()


@given(asked=questions(), scores_at_once=st.integers(1, 100))
def test_other_devices_find_the_same_scores(asked, scores_at_once):
    """By the form that needs no compiled loop, here in double precision on the CPU; equal ones are in any order."""
    table, queries, left_out, k = asked
    with patched(SCORES_AT_ONCE=scores_at_once):
        found = best_items(table.double(), queries.double(), left_out, k)
    for (places, scores), (_, expected), out, query in zip(found, sorted_out(*asked), left_out, queries, strict=True):
        assert scores == expected
        assert (table[places] @ query).tolist() == expected
        assert not set(places) & set(out)
        assert len(set(places)) == len(places)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_each_thread_has_a_part_that_is_worth_it(threads, monkeypatch):
    """Of 7 rows, 3 a thread: at most three threads; every row is in one part."""
    parts = []
    monkeypatch.setattr("skiprec.best_items.ROWS_OF_A_THREAD", 3)

    def kernel(*given):
        parts.append(given[3:5])

    monkeypatch.setattr("skiprec.best_items.searches_of", lambda width: (kernel, None))
    best_items(torch.ones(7, 2), torch.ones(1, 2), [[]], 1, threads=threads)
    assert len(parts) == min(threads, 3)
    assert sorted(row for first, last in parts for row in range(first, last)) == list(range(7))


@pytest.mark.parametrize("B", [1, 3])
def test_rows_of_a_view_and_of_realistic_size_are_found(B):
    """10,000 rows of width 64, from the second row of a larger table on, as a model's padding row asks for."""
    torch.manual_seed(1)
    table, queries = torch.randn(10_001, 64)[1:], torch.randn(B, 64)
    left_out = [list(range(0, 10_000, 3))] * B
    found, expected = best_items(table, queries, left_out, 50, threads=3), best_by_sorting(table, queries, left_out, 50)
    for (places, scores), (own_places, own_scores) in zip(found, expected, strict=True):
        assert places == own_places
        assert scores == pytest.approx(own_scores, abs=1e-5)


@pytest.mark.parametrize("B", [1, 2])
def test_what_has_no_score_is_never_found(B):
    """NaN is not among the best, whatever else is."""
    table, queries = torch.ones(6, 2), torch.ones(B, 2)
    table[2] = torch.nan
    assert best_items(table, queries, [[0]] * B, 9) == [([1, 3, 4, 5], [2.0] * 4)] * B
    assert best_items(table, torch.full((B, 2), torch.nan), [[]] * B, 3) == [([], [])] * B


def test_where_nothing_can_be_written_loops_are_compiled_all_the_same():
    """As in a container whose code and home are read-only: Numba finds no place to keep what it compiles."""
    code = """
from numba.core.caching import CacheImpl
CacheImpl._locator_classes = []
import torch
from skiprec.best_items import best_items
print(best_items(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0]]), [[]], 1))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[([1], [3.0])]\n"
