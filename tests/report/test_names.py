"""Names of unknown origin: never a path, never obeyed by a terminal, never markup."""

from __future__ import annotations

import re

import pytest

from jumpstart.errors import InputError
from jumpstart.report import records
from jumpstart.report.names import file_name, printable, require_file_name

HOSTILE = {
    "up": "../../escaped",
    "absolute": "/tmp/escaped",
    "null": "a\0b",
    "long": "x" * 5000,
    "empty": "",
    "dots": "..",
    "backslashes": "..\\..\\a",
    "escape codes": "\x1b[2J\x1b]0;title\x07red",
    "lines": "a\nb\rc",
    "right to left": "abc\u202egnp.exe",
    "invisible": "a\u200bb\u2066",
    "half a pair": "\ud800",
    "another plane": "𝔸\U000e0001",
    "mathtext": "lr=$\\frac{1}{2$",
    "underscore": "_mine",
    "letters": "é日本",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_file_names_are_letters_digits_and_two_signs(name):
    given = HOSTILE[name]
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}", file_name(given, "comparison"))
    if name == "underscore":
        assert require_file_name(given, "compare") == given
    else:
        with pytest.raises(InputError, match=r"compare: name=.* letters, digits"):
            require_file_name(given, "compare")


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_printed_is_one_line_that_nothing_obeys(name):
    shown = printable(HOSTILE[name])
    assert shown.isprintable() and len(shown) <= 60 * 10
    table = records.table([{"a": HOSTILE[name], "b": 1.0}], {"a": HOSTILE[name], "b": "value"})
    assert len(table.split("\n")) == 3 and all(line.isprintable() for line in table.split("\n"))


def test_plain_names_stay_as_they_are():
    for name in ("digits", "L-BFGS", "run_2"):
        assert file_name(name, "x") == printable(name) == require_file_name(name, "x") == name
    assert printable("lr = 3·10⁻² → é") == "lr = 3·10⁻² → é"
    for name in (None, 3, b"a", ["a"]):
        with pytest.raises(InputError):
            require_file_name(name, "x")
