"""What the runs say: settings chosen, ends beside the slower clock's, and frontiers."""

from __future__ import annotations

from jumpstart.report.records import Row

from .settings import TUNING


def shortened(row: Row) -> Row:
    """A run of the tuning is its end and its best; nothing else is asked of it."""
    if row["part"] != TUNING:
        return row
    curve = row["curve"]
    at = min(range(len(curve["epoch"])), key=lambda i: curve["validation"][i])
    keys = ("train", "validation", "validation accuracy")
    return {**row, "curve": {key: [curve[key][at], curve[key][-1]] for key in ("epoch", *keys)}}
