"""The plotting library, plotly.js (MIT): read from the package plotly where it is installed, never vendored."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import importlib.util
from pathlib import Path

from ...errors import MissingPackageError

FILE = Path("package_data", "plotly.min.js")
MISSING = "pages in HTML need the package plotly: pip install 'jumpstart[html]', or pip install plotly."


@functools.cache
def plotly() -> tuple[str, str]:
    """Its text, compressed by gzip, in base64 (1.9 MB in the place of 4.6); and the hash by which a page allows it.

    Raises:
        MissingPackageError: it is not installed, or its package no longer has that file.
    """
    try:
        spec = importlib.util.find_spec("plotly")
    except ValueError:  # sys.modules says that there is none
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(MISSING)
    path = Path(next(iter(spec.submodule_search_locations))) / FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise MissingPackageError(f"{MISSING} The one that is installed has no {FILE.as_posix()} ({error}).") from error
    digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
    return base64.b64encode(gzip.compress(text, 6, mtime=0)).decode(), f"'sha256-{digest}'"
