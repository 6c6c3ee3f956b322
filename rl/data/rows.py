"""Raw rows of a dataset: a JSONL or Parquet file, or a dataset that the `datasets` library can load."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

Row = dict[str, Any]

_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_DATASET_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def iter_rows(source: str, split: str | None, subset: str | None) -> Iterator[Row]:
    """The rows of `source` one by one, as they stand there.

    Args:
        source: a file ending in .jsonl, .jsonl.gz or .parquet; or a HuggingFace dataset id or a folder of data files.
        split: split of a dataset; None if it has only one. A file has none.
        subset: configuration of a dataset, such as "main"; None if it has only one. A file has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unsupported suffix, unreadable content, or a dataset that cannot be loaded.
    """
    path = Path(source)
    if not source.endswith(_SUFFIXES):
        if path.is_file():
            raise ValueError(f"{source}: unsupported suffix; a data file ends in {', '.join(_SUFFIXES)}")
        if path.is_dir() or _DATASET_ID.fullmatch(source):
            return _dataset_rows(source, split, subset)
    if not path.is_file():
        raise FileNotFoundError(f"there is no data file {source!r} (looked in {Path.cwd()})")
    if split is not None or subset is not None:
        raise ValueError(f"{source} is a file and has no split or subset; leave both unset (got {split!r}, {subset!r})")
    return _file_rows(path)


def _file_rows(path: Path) -> Iterator[Row]:
    try:
        yield from _parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read, it may be damaged or of another format: {error}") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _jsonl_rows(path: Path) -> Iterator[Row]:
    # The json module rather than a table reader, which would turn strings that look like dates into dates.
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg}): {line[:60]!r}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}")
            yield row


def _dataset_rows(source: str, split: str | None, subset: str | None) -> Iterator[Row]:
    import datasets  # slow to import, and a run on generated problems or a file does without

    try:
        dataset = datasets.load_dataset(source, name=subset, split=split)
    except Exception as error:  # of many libraries: network, hub, file formats
        raise ValueError(
            f"{source!r} is no data file ({', '.join(_SUFFIXES)}) and cannot be loaded as a HuggingFace dataset "
            f"(split {split!r}, subset {subset!r}): {error}"
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        if len(dataset) > 1:
            raise ValueError(f"dataset {source!r} has the splits {', '.join(map(str, dataset))}; set `split` to one")
        dataset = next(iter(dataset.values()))
    return iter(dataset)
