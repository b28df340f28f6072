"""Which log files there are, how they are to be read, and their rows, read by one process or several."""

import dataclasses
import glob
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from tqdm import tqdm

from skiprec.columns import PACKED, SUFFIXES, ColumnMap, load_map, without_defaults
from skiprec.errors import ConfigError, DatasetError
from skiprec.events import BAD, Order, Rows
from skiprec.gathering import Gathered, Gatherer
from skiprec.logs import read_log
from skiprec.mapping import SECOND, read_mapped
from skiprec.merging import Log
from skiprec.numbering import Codes
from skiprec.pseudonyms import key_check, pseudonyms

MSSD = load_map("mssd")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How logs are read."""

    columns: ColumnMap = MSSD
    """What their columns mean."""
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    """What is done with a row that is not as it should be."""
    bad_rows_at_most: float = 0.01
    """The share of all rows that may be left out so, before the logs are refused after all."""
    key: bytes | None = field(default=None, repr=False)
    """With which ids are replaced by pseudonyms, if at all."""
    hash_items: bool = False
    """Whether items' ids are replaced too: recommendations then name pseudonyms."""

    def __post_init__(self) -> None:
        if self.on_bad_row not in ("refuse", "skip"):
            raise ConfigError(f"--on-bad-row is '{self.on_bad_row}', expected refuse or skip")
        if not 0 <= self.bad_rows_at_most < 1:
            raise ConfigError(f"--bad-rows-at-most is {self.bad_rows_at_most:g}, expected 0 or more and less than 1")
        if self.hash_items and self.key is None:
            raise ConfigError("--pseudonymise-items goes with --pseudonymise KEYFILE")

    @property
    def order(self) -> Order:
        """What positions mean."""
        gap = round(60 * SECOND * self.columns.gap_minutes) if self.columns.gap_minutes else None
        return Order(by=self.columns.order_by, gap=gap)

    def about(self) -> dict[str, Any]:
        """What the manifest says of it: never the key."""
        told: dict[str, Any] = {"columns": without_defaults(self.columns), "on_bad_row": self.on_bad_row}
        if self.key is not None:
            told["pseudonyms"] = ["sessions", "items"] if self.hash_items else ["sessions"]
            told["key_check"] = key_check(self.key)
        return told

    def read(self, path: Path, contexts: Codes, advance: Callable[[int], object]) -> Iterator[Rows]:
        """One file's checked rows, block by block.

        Raises:
            DatasetError: With file and row.
        """
        if self.columns == MSSD and self.on_bad_row == "refuse":
            blocks = read_log(path, contexts, advance=advance)
        else:
            leave_bad_out = self.on_bad_row == "skip"
            blocks = read_mapped(path, self.columns, contexts, leave_bad_out=leave_bad_out, advance=advance)
        for rows in blocks:
            if self.key is not None:
                rows = dataclasses.replace(
                    rows,
                    session_id=pseudonyms(rows.session_id, self.key, "session"),
                    item_id=self.renamed_items(rows.item_id),
                )
            yield rows

    def renamed_items(self, item_ids: pa.StringArray) -> pa.StringArray:
        """Items' ids as the dataset has them."""
        return pseudonyms(item_ids, self.key, "item") if self.hash_items else item_ids


def find_logs(paths: Sequence[str | Path], columns: ColumnMap = MSSD) -> list[Path]:
    """The log files that are meant: files, globs, and the files of the map's format in folders. Each file once.

    Raises:
        DatasetError: If one of the paths leads to no file.
    """
    suffixes = tuple(suffix + packed for suffix in SUFFIXES[columns.format] for packed in PACKED)
    found: dict[Path, Path] = {}
    for path in paths:
        if os.path.isdir(path):
            names = sorted(p for p in Path(path).iterdir() if p.name.endswith(suffixes) and p.is_file())
            expected = f"a *{suffixes[0]} or *{suffixes[1]} file in this folder"
        elif os.path.exists(path):
            names, expected = [Path(path)], ""
        else:
            names = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)]
            expected = "a log file, a folder of them, or a pattern such as 'logs/*.csv.gz'"
        if not names:
            raise DatasetError(f"{path}: found nothing, expected {expected}")
        found |= {name.resolve(): name for name in names if name.resolve() not in found}
    if not found:
        raise DatasetError("no log was named, expected at least one file, folder or pattern")
    return list(found.values())


def read_logs(
    files: Sequence[Path],
    reading: Reading,
    scratch: Path,
    *,
    processes: int = 1,
    progress: bool = True,
) -> Log:
    """Read all files, in any order of files and rows.

    Args:
        files: As find_logs gives them.
        reading: How.
        scratch: A folder for the rows, which the log reads them from.
        processes: That read files at the same time.
        progress: Show a bar of bytes, where there is a terminal.

    Raises:
        DatasetError: At the first thing that is not as it should be, with file and row.
    """
    if reading.order.by != "position":  # where all else is equal, files' names decide, and not how they were given
        files = sorted(files, key=lambda file: (file.name, str(file)))
    sizes = [os.stat(file).st_size if file.exists() else 0 for file in files]
    processes = min(processes, len(files))
    with tqdm(
        total=sum(sizes), desc="reading logs", unit="B", unit_scale=True, disable=None if progress else True
    ) as bar:
        if processes == 1:
            gathered = [gather(list(enumerate(files)), reading, scratch, "0", bar.update)]
        else:
            gathered = gather_at_once(shares(files, sizes, processes), reading, scratch, bar)
    log = Log(gathered, files, reading.order, leave_bad_out=reading.on_bad_row == "skip")
    refuse_too_many_bad(files, log.n_rows, log.left_out, reading)
    return log


def gather(
    files: Sequence[tuple[int, Path]],
    reading: Reading,
    scratch: Path,
    name: str,
    advance: Callable[[int], object],
) -> Gathered:
    """Read some files, which are named by numbers.

    Raises:
        DatasetError: At the first thing that is not as it should be, with file and row.
    """
    gatherer = Gatherer(reading.order, scratch, name)
    for number, file in files:
        for rows in made_ahead(reading.read(file, gatherer.contexts, advance)):
            gatherer.add(rows, number)
    return gatherer.finish()


def refuse_too_many_bad(files: Sequence[Path], n: int, left_out: Mapping[str, int], reading: Reading) -> None:
    """Refuse logs of which too large a part was left out, or nothing is left.

    Raises:
        DatasetError: With the numbers of rows by what is wrong with them.
    """
    bad = {reason: n for reason, n in left_out.items() if reason.startswith(BAD)}
    n_bad = sum(bad.values())
    why = ", ".join(f"{n:,} {reason.removeprefix(BAD)}" for reason, n in sorted(bad.items()))
    where = ", ".join(str(path) for path in files[:3]) + (", ..." if len(files) > 3 else "")
    if n_bad > reading.bad_rows_at_most * (n + n_bad):
        raise DatasetError(
            f"{where}: {n_bad:,} of {n + n_bad:,} rows are bad ({why}), expected at most "
            f"{100 * reading.bad_rows_at_most:.4g}%; see what is wrong with --on-bad-row refuse, or allow more with "
            "--bad-rows-at-most"
        )
    if not n:
        raise DatasetError(f"{where}: no row is left ({sum(left_out.values()):,} were left out)")


def made_ahead(blocks: Iterator[Rows]) -> Iterator[Rows]:
    """The same blocks; while one is used, the next one is made on another thread."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = thread.submit(next, blocks, None)
            yield block


def shares(files: Sequence[Path], sizes: Sequence[int], n: int) -> list[list[tuple[int, Path]]]:
    """Files and their numbers in n shares of about the same size."""
    found: list[list[tuple[int, Path]]] = [[] for _ in range(n)]
    filled = [0] * n
    for i in sorted(range(len(files)), key=lambda i: -sizes[i]):
        least = filled.index(min(filled))
        found[least].append((i, files[i]))
        filled[least] += sizes[i] + 1
    return [sorted(share) for share in found]


def gather_at_once(
    parts: Sequence[list[tuple[int, Path]]], reading: Reading, scratch: Path, bar: tqdm
) -> list[Gathered]:
    """Read each share of the files in a process of its own.

    Raises:
        DatasetError: As soon as one of them raises it, or was ended by someone else.
    """
    context = multiprocessing.get_context("spawn")  # torch and Arrow have threads, which a fork would leave behind
    # Without locks, which a process that is killed would hold for ever: each reader has a number of its own.
    read, stop = context.Array("q", len(parts), lock=False), context.Value("b", 0, lock=False)
    with ProcessPoolExecutor(len(parts), context, start_reader, (read, stop)) as pool:
        try:
            jobs = [pool.submit(gather_here, part, reading, scratch, i) for i, part in enumerate(parts)]
            waiting = set(jobs)
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                for job in done:
                    job.result()
                bar.update(sum(read) - bar.n)
        except BrokenProcessPool as error:
            raise DatasetError(
                f"one of {len(parts)} processes that read the logs was ended from outside (where memory runs out the "
                "system does that); run it again, with fewer --processes"
            ) from error
        finally:
            stop.value = 1  # whoever still reads, after an error here or there
    return [job.result() for job in jobs]


class Stopped(Exception):
    """Another process has failed."""


shared: dict[str, Any] = {}
"""In a process of `gather_at_once`: bytes read by each, and whether to stop."""


def start_reader(read: Any, stop: Any) -> None:
    """Before anything else in such a process."""
    shared.update(read=read, stop=stop)
    pa.set_memory_pool(pa.system_memory_pool())
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait until the process that started this one is gone, and end this one, which would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def gather_here(files: list[tuple[int, Path]], reading: Reading, scratch: Path, number: int) -> Gathered:
    """`gather` in such a process."""

    def advance(n: int) -> None:
        if shared["stop"].value:
            raise Stopped
        shared["read"][number] += n

    return gather(files, reading, scratch, str(number), advance)
