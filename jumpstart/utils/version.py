"""The version of the package that is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed() -> str:
    """From the package's metadata; "unknown" where it is run without being installed."""
    try:
        return version("jumpstart")
    except PackageNotFoundError:
        return "unknown"
