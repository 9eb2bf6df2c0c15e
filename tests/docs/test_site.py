"""The site is built strictly, every link on it leads somewhere, and it is read without a network."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .links import broken, from_network, pages
from .reference import ROOT, found, module, public

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def built(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder), *options]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    run = built(folder)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


def test_every_link_leads_to_a_page_and_to_a_heading_of_it(site):
    assert len(pages(site)) > 60
    assert broken(site) == []


def test_nothing_is_loaded_from_a_network(site):
    assert from_network(site) == set()


def test_every_public_name_has_an_entry(site):
    ids = set().union(*(page.ids for path, page in pages(site / "api").items()))
    entries = {found(name).path for name in public() if name in ids or found(name).path in ids}
    assert [name for name in public() if found(name).path not in entries] == []
    assert "jumpstart.gating.groups.groups" in ids  # the function, not the module of its name


def test_pages_from_outside_of_docs_and_notebooks_are_there(site):
    for name, words in (
        ("index.html", "Skip training steps by solving them"),
        ("changes.html", "Unreleased"),
        ("contributing.html", "A loss"),
        ("notebooks/burgers.html", "data:image/png;base64"),
    ):
        assert words in (site / name).read_text(encoding="utf-8"), name


def test_the_link_check_sees_what_is_broken(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#there">x</a><a href="c.html">y</a><a href="#no">z</a>')
    (tmp_path / "b.html").write_text('<h1 id="there">B</h1><script src="https://cdn.example/x.js"></script>')
    (tmp_path / "s.css").write_text('@import "//fonts.example/f.css"; a { background: url(data:image/png;base64,x) }')
    assert {(target, why) for _, target, why in broken(tmp_path)} == {
        ("c.html", "no such file"),
        ("#no", "no such heading"),
    }
    assert from_network(tmp_path) == {("b.html", "https://cdn.example/x.js"), ("s.css", "//fonts.example/f.css")}


def test_headings_are_called_as_on_github():
    hooks = module(ROOT / "docs" / "hooks.py")
    assert hooks.slug("From 10⁵, say") == "from-10-say"
    assert hooks.slug("Größe λ_max & `solve`") == "größe-λ_max--solve"


def test_lists_and_links_are_those_of_github():
    hooks = module(ROOT / "docs" / "hooks.py")
    assert hooks._lists("**Left.**\n- one\n  more\n- two") == "**Left.**\n\n- one\n  more\n- two"
    assert hooks._bars("| `a \\| b` | c |") == "| `a | b` | c |"
    link = hooks.LINK.sub(
        lambda m: hooks._link(m, ROOT / "docs" / "api", 1), "[a](../theory.md#x) [b](../../README.md)"
    )
    assert link == "[a](../theory.md#x) [b](../index.md)"
    outside = hooks.LINK.sub(lambda m: hooks._link(m, ROOT / "docs", 0), "[c](../experiments/core.py)")
    assert outside == "c (`experiments/core.py`)"


def test_several_arguments_on_a_line_become_lines():
    docstrings = module(ROOT / "docs" / "docstrings.py")
    text = "X.\n\nArgs:\n    a: one. b, c: two\n        go.\n    d: 3: not e, docs/theory.md.\n\nExample:\n    >>> 1\n"
    assert docstrings.readable(text, {"a", "b", "c", "d"}) == (
        "X.\n\nArgs:\n    a: one.\n    b: two\n        go.\n    c: see `b`.\n"
        "    d: 3: not e, [docs/theory.md](../theory.html).\n\nExamples:\n    >>> 1\n"
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed")
def test_search_works_in_a_folder_and_asks_no_network(site):
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=CHROMIUM, args=[*flags, "--disable-component-update", "--disable-sync"]
        )
        page = browser.new_page(viewport={"width": 390, "height": 800})
        asked: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((site / "api" / "jump.html").as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        page.keyboard.press("s")
        page.keyboard.type("leave one out")
        page.wait_for_selector(".md-search-result__item", timeout=20_000)
        hits = page.locator(".md-search-result__item").count()
        browser.close()
    assert hits >= 1
    assert wide <= 0
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:"))] == []
