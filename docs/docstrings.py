"""What the site does to docstrings before they are parsed: this project writes several arguments on a line."""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Function, Object

ROLE = re.compile(r":(?:class|func|meth|mod|attr|exc):`~?([^`]+)`")
SECTION = re.compile(r"^(Args|Arguments|Attributes|Raises|Returns|Yields|Example|Examples|Source|Note):\s*$")


def readable(text: str, names: set[str]) -> str:
    """Args one a line, roles as code, examples fenced.

    ``a: x. b, c: y.`` under Args becomes three lines, where a, b and c are ``names`` of the signature.
    """
    text = ROLE.sub(lambda role: f"`{role[1]}`", text)
    lines: list[str] = []
    section = ""
    for line in text.split("\n"):
        head = SECTION.match(line)
        if head:
            section = head[1]
            if section == "Example":  # the parser's own name for what holds >>>
                line = "Examples:"
        elif line and not line.startswith(" "):
            section = ""
        if section in ("Args", "Arguments", "Attributes"):
            lines += _split(line, names)
        else:
            lines.append(line)
    return "\n".join(lines)


def _split(line: str, names: set[str]) -> list[str]:
    """One line of a section of arguments as one line an argument."""
    if not names:
        return [line]
    one = "|".join(rf"\*{{0,2}}{re.escape(name)}" for name in sorted(names, key=len, reverse=True))
    indent = "    "
    found = re.sub(rf"(?<=[.;:?!)]) ((?:{one})(?:, (?:{one}))*: )", rf"\n{indent}\1", line)
    out: list[str] = []
    for piece in found.split("\n"):
        several = re.match(rf"{indent}((?:{one})(?:, (?:{one}))+): (.*)$", piece)
        if not several:
            out.append(piece)
            continue
        first, *rest = several[1].split(", ")
        out.append(f"{indent}{first}: {several[2]}")
        out += [f"{indent}{other}: as `{first}`." for other in rest]
    return out


class Readable(Extension):
    """Applied to every docstring as it is loaded."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        names: set[str] = set()
        if isinstance(obj, Function):
            names = {parameter.name.lstrip("*") for parameter in obj.parameters}
        elif isinstance(obj, Class):
            names = {parameter.name.lstrip("*") for parameter in obj.parameters} | set(obj.attributes)
        obj.docstring.value = readable(obj.docstring.value, names - {"self", "cls"})
