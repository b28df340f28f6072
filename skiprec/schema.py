"""Column names, dtypes and reserved indices of every table. Nothing else says what a column is called."""

import pyarrow as pa

PADDING = 0
"""Item index that fills a session up to the common length. Real items count from 1."""

# The MSSD log (Brost et al. 2019), in the order of its files.
LOG_COLUMNS = (
    "session_id",
    "session_position",
    "session_length",
    "track_id_clean",
    "skip_1",
    "skip_2",
    "skip_3",
    "not_skipped",
    "context_switch",
    "no_pause_before_play",
    "short_pause_before_play",
    "long_pause_before_play",
    "hist_user_behavior_n_seekfwd",
    "hist_user_behavior_n_seekback",
    "hist_user_behavior_is_shuffle",
    "hour_of_day",
    "date",
    "premium",
    "context_type",
    "hist_user_behavior_reason_start",
    "hist_user_behavior_reason_end",
)
"""Every column of an MSSD log file."""

SKIP_FLAGS = ("skip_1", "skip_2", "skip_3", "not_skipped")
"""Cumulative: skip_1 (played very briefly) implies skip_2 (briefly) implies skip_3 (mostly)."""

READ_COLUMNS = (*LOG_COLUMNS[:4], *SKIP_FLAGS, "date", "context_type")
"""The columns that preparing needs. A log may have more."""

SESSIONS = pa.schema(
    [
        ("session_id", pa.string()),
        ("date", pa.date32()),
        ("items", pa.list_(pa.int32())),
        ("skip_levels", pa.list_(pa.int8())),
        ("contexts", pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    ]
)
"""sessions.parquet: one row a session, sorted by session_id. `date` is that of the session's first row."""

ITEMS = pa.schema([("item_index", pa.int32()), ("item_id", pa.string()), ("plays", pa.int64())])
"""items.parquet: one row an item, item_index 1, 2, ... in the order of item_id; plays in training prefixes."""
