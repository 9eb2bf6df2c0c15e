"""Rows for other programs: CSV by the standard library, a DataFrame where pandas is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingPackageError
from ..utils import files


def to_csv(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write rows, whole or not at all, with a column for each name in them; numbers in full, nothing for None.

    Raises:
        InputError: the file cannot be written.
    """
    target = Path(path)
    target = target if target.suffix else target.with_name(f"{target.name}.csv")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list({key: None for row in rows for key in row}))
    writer.writeheader()
    writer.writerows(rows)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(target) as file:
            file.write(text.getvalue().encode("utf-8", "backslashreplace"))
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise InputError(f"{path} cannot be written ({error}): give a path in a folder that can be.") from error
    return target


def dataframe(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a pandas DataFrame.

    Raises:
        MissingPackageError: pandas is not installed.
    """
    try:
        import pandas  # pyright: ignore[reportMissingImports]  # optional
    except ImportError as error:
        raise MissingPackageError(
            "a DataFrame needs the package pandas: pip install pandas, or take to_csv(path)."
        ) from error
    return pandas.DataFrame(list(rows))
