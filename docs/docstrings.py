"""What the site does to docstrings before they are parsed: this project writes several arguments on a line."""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Docstring, Extension, Function, Object

ROLE = re.compile(r":(?:class|func|meth|mod|attr|exc):`~?([^`]+)`")
PAGE = re.compile(r"docs/((?:decisions/)?[\w-]+)\.md")
SEVERAL = re.compile(r"    (\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*)$")
DEEP = "        "  # a line that goes on with the argument before
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields|Example|Examples|Source|Note):\s*$")


def readable(text: str, names: set[str]) -> str:
    """Args one a line, roles as code, pages as links, examples under the name that the parser knows.

    ``a: x. b, c: y.`` under Args becomes three lines, where a, b and c are ``names`` of the signature.
    """
    text = ROLE.sub(lambda role: f"`{role[1]}`", text)
    text = PAGE.sub(r"[\g<0>](../\1.html)", text)
    lines: list[str] = []
    later: list[str] = []  # the others of several arguments on one line, behind what is said of the first
    section = ""
    for line in text.split("\n"):
        head = SECTION.match(line)
        if head:
            section = head[1]
            line = "Examples:" if section == "Example" else line
        elif line and not line.startswith(" "):
            section = ""
        inside = section in ("Args", "Attributes")
        for piece in _split(line, names if section == "Args" else set()) if inside else [line]:
            if not piece.startswith(DEEP):
                lines += later
                later = []
            several = SEVERAL.match(piece) if inside else None
            if several:
                first, *rest = several[1].split(", ")
                lines.append(f"    {first}: {several[2]}")
                later = [f"    {other}: see `{first}`." for other in rest]
            else:
                lines.append(piece)
    return "\n".join(lines + later)


def _split(line: str, names: set[str]) -> list[str]:
    """One line of a section, parted where another argument of the signature (or any attribute) begins."""
    one = "|".join(rf"\*{{0,2}}{re.escape(name)}" for name in sorted(names, key=len, reverse=True))
    one = one or r"[a-z_]\w*"
    return re.sub(rf"(?<=[.;:?!)]) ((?:{one})(?:, (?:{one}))*: )", r"\n    \1", line).split("\n")


class Readable(Extension):
    """Applied to every docstring as it is loaded; what is not said of a method is what the class above says of it."""

    def on_package(self, *, pkg: Any, **kwargs: Any) -> None:
        todo: list[Any] = [pkg]
        while todo:
            for member in todo.pop().members.values():
                if member.is_alias:
                    continue
                if member.is_module:
                    todo.append(member)
                elif member.is_class:
                    todo.append(member)
                    _inherit(member)

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        names: set[str] = set()
        if isinstance(obj, Function):
            names = {parameter.name.lstrip("*") for parameter in obj.parameters}
        elif isinstance(obj, Class):
            names = {parameter.name.lstrip("*") for parameter in obj.parameters} | set(obj.attributes)
        obj.docstring.value = readable(obj.docstring.value, names - {"self", "cls"})


def _inherit(item: Class) -> None:
    """Docstrings of methods that override documented ones without one of their own."""
    for name, member in item.members.items():
        if member.is_alias or member.docstring is not None or name.startswith("_"):
            continue
        for above in item.mro():
            found = above.members.get(name)
            if found is not None and found.docstring is not None:
                member.docstring = Docstring(found.docstring.value, parent=member)
                break
