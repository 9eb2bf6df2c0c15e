"""What the pages of a built site lead to: each link as (page, target, why it leads nowhere)."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href"), ("object", "data")}


class Page(HTMLParser):
    """Ids of a page, what it links to, and what a browser loads to show it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        canonical = tag == "link" and given.get("rel") in ("canonical", "prev", "next", "edit")
        for name, value in given.items():
            if (tag, name) in LOADED and not canonical:
                self.loaded.append(value)


def pages(site: Path) -> dict[Path, Page]:
    return {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def broken(site: Path) -> list[tuple[str, str, str]]:
    """Links within the site that lead to no file, or to no heading of one."""
    read, found = pages(site), []
    for path, page in read.items():
        if path.name == "404.html":  # its links start at the root of wherever it will be served
            continue
        for target in [*page.links, *page.loaded]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            aim = aim / "index.html" if aim.is_dir() else aim
            name = path.relative_to(site.resolve()).as_posix()
            if not aim.is_file():
                found.append((name, target, "no such file"))
            elif parts.fragment and aim in read and unquote(parts.fragment) not in read[aim].ids | {"__skip", ""}:
                found.append((name, target, "no such heading"))
    return found


def from_network(site: Path) -> set[tuple[str, str]]:
    """What a page, or a stylesheet, would load from elsewhere."""
    found = set()
    for path, page in pages(site).items():
        found |= {
            (path.name, url) for url in page.loaded if urlsplit(url).scheme in ("http", "https") or url[:2] == "//"
        }
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        found |= {(path.name, url) for url in re.findall(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)", text)}
    return found
