"""Texts and their numbers: the same as a dictionary would give, whatever the texts, the blocks and the hashes."""

import random

import numpy as np
import pyarrow as pa
import pytest

import skiprec.numbering
from skiprec.numbering import Numbering, counted, hash_pairs, renumber


def some_texts(n: int) -> list[str]:
    """Texts of 1 to 40 characters, some not ASCII, that share beginnings and ends and come again."""
    draw = random.Random(1)
    parts = ["a", "bb", "t_0479f24c", "-27d2", "é", "東京", "x" * 17, "y" * 8]
    return ["".join(draw.choices(parts, k=draw.randint(1, 3))) + str(draw.randint(0, 40)) for _ in range(n)]


def check_against_a_dictionary(texts: list[str], block: int) -> None:
    """Equal texts have equal numbers, others have others, and each text is kept under its number."""
    numbering = Numbering()
    numbers = [
        n for i in range(0, len(texts), block) for n in numbering.numbers(pa.array(texts[i : i + block])).tolist()
    ]
    assert numbering.n == len(set(texts))
    assert sorted(set(numbers)) == list(range(numbering.n))
    kept = pa.concat_arrays(numbering.texts).to_pylist()
    assert [kept[n] for n in numbers] == texts
    ordered, places = numbering.in_order()
    assert ordered.to_pylist() == sorted(set(texts))
    assert [ordered[int(places[n])].as_py() for n in set(numbers)] == [kept[n] for n in set(numbers)]


@pytest.mark.parametrize("block", [1, 7, 5000])
def test_numbers_are_those_of_a_dictionary_while_the_table_grows(block):
    texts = some_texts(10_000 if block == 5000 else 1000)
    check_against_a_dictionary(texts, block)
    if block == 5000:
        assert len(set(texts)) > 4096  # more than there was room for at first


@pytest.mark.parametrize("same", [0, 1])
def test_texts_of_which_one_hash_is_the_same_are_told_apart(monkeypatch, same):
    """The first hash says where a text is looked for: all look at one slot; the second alone tells them apart."""

    def colliding(texts: pa.StringArray) -> np.ndarray:
        hashes = hash_pairs(texts)
        hashes[same] = 5
        return hashes

    monkeypatch.setattr(skiprec.numbering, "hash_pairs", colliding)
    check_against_a_dictionary(some_texts(300), 40)


def test_a_hash_is_of_the_text_alone():
    texts = some_texts(500)
    whole = hash_pairs(pa.array(texts))
    assert np.array_equal(hash_pairs(pa.array(["pad", *texts, "pad"])[1:-1]), whole)
    assert all(np.array_equal(hash_pairs(pa.array([text]))[:, 0], whole[:, i]) for i, text in enumerate(texts))
    assert len({tuple(pair) for pair in whole.T.tolist()}) == len(set(texts))


def test_each_byte_of_a_text_counts_in_both_hashes():
    text = "t_4f1c9a02-77be-4c0d-9f3e-5a8d1b6c2e90"
    others = [text[:i] + "!" + text[i + 1 :] for i in range(len(text))] + [text[:i] for i in range(1, len(text))]
    first, second = hash_pairs(pa.array([text, *others]))
    assert len(set(first.tolist())) == len(set(second.tolist())) == len(others) + 1


def test_looking_up_and_counting_are_those_of_numpy(monkeypatch):
    monkeypatch.setattr(skiprec.numbering, "AT_ONCE", 10)
    numbers = np.random.default_rng(1).integers(0, 7, 95, dtype=np.int32)
    table = np.array([3, 1, 4, 1, 5, 9, 2], dtype=np.int32)
    assert counted(numbers, 9).tolist() == np.bincount(numbers, minlength=9).tolist()
    expected = table[numbers]
    renumber(numbers, table)
    assert np.array_equal(numbers, expected)
