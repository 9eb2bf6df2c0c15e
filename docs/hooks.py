"""What the site does to pages that are written for GitHub: links that leave docs/, lists, names of headings."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
OUTSIDE = {"README.md": "index.md", "CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md"}
AWAITED = {"distributed.md", "ablations.md"}  # pages that the table of contents names as soon as they exist
WORD = ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Pc")  # Unicode's kinds in Ruby's [[:word:]]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```.*?^```)$", re.S | re.M)
ITEM = re.compile(r"^( *)(?:[-*]|\d+\.) ")


def slug(text: str, separator: str = "-") -> str:
    """What GitHub calls a heading: the same links lead there on both."""
    kept = (c for c in text.lower() if c in "- " or unicodedata.category(c) in WORD)
    return "".join(separator if c == " " else c for c in kept)


def on_config(config: Any) -> Any:
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    config.nav = [_present(entry) for entry in config.nav]
    return config


def _present(entry: Any) -> Any:
    """The table of contents without awaited pages that are not written yet, with the decisions in their order."""
    if isinstance(entry, dict):
        ((title, inner),) = entry.items()
        if isinstance(inner, list):
            return {title: [_present(item) for item in inner if not _missing(item)]}
    if entry == "decisions/":
        records = sorted(path.name for path in (DOCS / "decisions").glob("0*.md"))
        return {"Decisions": ["decisions/README.md", *[f"decisions/{name}" for name in records]]}
    return entry


def _missing(entry: Any) -> bool:
    page = next(iter(entry.values())) if isinstance(entry, dict) else entry
    return isinstance(page, str) and page in AWAITED and not (DOCS / page).exists()


def on_files(files: Files, config: Any) -> Files:
    for name, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for path in sorted(DOCS.rglob("*.ipynb")):
        content = _notebook(json.loads(path.read_text(encoding="utf-8")))
        files.append(File.generated(config, path.relative_to(DOCS).with_suffix(".md").as_posix(), content=content))
    return files


def _notebook(notebook: dict[str, Any]) -> str:
    """A notebook as a page: its text, its code, and the outputs that it was saved with."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if picture := "".join(data.get("image/png", "")).replace("\n", ""):
                parts.append(f'<img alt="Picture that the cell above draws" src="data:image/png;base64,{picture}">')
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    home = {page: ROOT / name for name, page in OUTSIDE.items()}.get(page.file.src_uri)
    folder = home.parent if home else (DOCS / page.file.src_uri).parent
    depth = page.file.src_uri.count("/")
    parts = FENCE.split(markdown)
    parts[::2] = [_lists(_bars(LINK.sub(lambda link: _link(link, folder, depth), part))) for part in parts[::2]]
    return "".join(parts)


def _link(link: re.Match[str], folder: Path, depth: int) -> str:
    """The same link inside the site; what is no part of it is named and not linked."""
    bang, text, target = link.groups()
    path, hash_, heading = target.partition("#")
    if "://" in target or not path:
        return link[0]
    aim = (folder / path).resolve()
    if not aim.exists():
        return link[0]  # mkdocs says so
    name = aim.relative_to(ROOT).as_posix()
    if name in OUTSIDE:
        inside = OUTSIDE[name]
    elif aim.is_file() and aim.is_relative_to(DOCS):
        inside = aim.relative_to(DOCS).as_posix().removesuffix(".ipynb") + (".md" if aim.suffix == ".ipynb" else "")
    else:
        return f"{text} (`{name}`)"
    return f"{bang}[{text}]({'../' * depth}{inside}{hash_}{heading})"


def _bars(text: str) -> str:
    """A bar in code in a table is escaped on GitHub, and is none of the table's in Python-Markdown."""
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("\\|", "|"), text)


def _lists(text: str) -> str:
    """A list may follow a line of text at once on GitHub, and only after an empty line in Python-Markdown."""
    lines: list[str] = []
    for line in text.split("\n"):
        before = lines[-1] if lines else ""
        listed = bool(ITEM.match(before)) or before.startswith("  ")
        if ITEM.match(line) and before.strip() and not listed:
            lines.append("")
        lines.append(line)
    return "\n".join(lines)
