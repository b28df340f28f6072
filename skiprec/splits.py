"""The temporal split: whole sessions by date, the first days trained on, the last ones asked about."""

import numpy as np
from jaxtyping import Int8, Int32

from skiprec.errors import DatasetError

# S sessions.

TRAIN, VAL, TEST = 0, 1, 2
"""The parts of a temporal split, in the order of time."""
TENTHS = (8, 9)
"""Of the sessions before the first validation day, and before the first test day: what the cuts are near to."""
LEAST_TENTHS = 5
"""Of the sessions that are trained on: logs of a few days may have no cut near 80%."""


def temporal_parts(dates: Int32[np.ndarray, " S"]) -> Int8[np.ndarray, " S"]:
    """The part of each session: TRAIN, then VAL, then TEST, cut between two days, so that no day is in two parts.

    Args:
        dates: Days, as whole numbers, of the sessions' first rows.

    Returns:
        The parts. Each cut lies where the share of the sessions before it is nearest to TENTHS, the earlier of two that
        are equally near.

    Raises:
        DatasetError: If there are fewer than three days, or the cut leaves less than half of the sessions to train on.
    """
    days, counts = np.unique(dates, return_counts=True)
    if len(days) < 3:
        raise DatasetError(
            f"the temporal split needs sessions of three days or more, found {len(days)}; add logs of other days, or "
            "use the split 'leave_one_out'"
        )
    before = np.cumsum(counts)[:-1]  # each day but the first
    off = [np.abs(10 * before - tenths * len(dates)) for tenths in TENTHS]
    val = int(off[0][:-1].argmin())  # test has a day left
    test = val + 1 + int(off[1][val + 1 :].argmin())
    if 10 * before[val] < LEAST_TENTHS * len(dates):
        raise DatasetError(
            f"the temporal split would train on {before[val]:,} of {len(dates):,} sessions, expected at least half of "
            "them: too many lie on few days; add logs of other days, or use 'leave_one_out'"
        )
    return ((dates >= days[val + 1]).astype(np.int8) + (dates >= days[test + 1])).astype(np.int8)
