"""What is built from a clone: wheel and source distribution hold what they should, and work by themselves."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

import jumpstart

from .badges import FOLDER, badges
from .reference import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with both, built without an environment of its own, which would be downloaded."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return folder


def sources():
    found = [path for kind in ("*.py", "*.js", "*.css") for path in (ROOT / "jumpstart").rglob(kind)]
    return {path.relative_to(ROOT).as_posix() for path in found} | {"jumpstart/py.typed"}


def test_twine_finds_nothing(built):
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("PASSED") == 2


def test_wheel_is_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        meta = next(name for name in names if name.endswith("METADATA"))
        told = email.message_from_bytes(file.read(meta))
    assert {name for name in names if ".dist-info/" not in name} == sources()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert told["Version"] == jumpstart.__version__
    assert told["Requires-Python"] == ">=3.11"
    plain = [need for need in told.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert sorted(need.split(">")[0].strip() for need in plain) == [
        "gpytorch", "linear-operator", "numpy", "scipy", "torch", "tqdm",
    ]  # fmt: skip


def test_source_distribution_is_small_and_whole(built):
    (archive,) = built.glob("*.tar.gz")
    assert archive.stat().st_size < 2_000_000
    with tarfile.open(archive) as file:
        names = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    assert sources() <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= names
    assert [name for name in names if name.startswith(("docs/", "tests/", "experiments/"))] == []


def test_the_wheel_alone_is_imported_and_answers(built, tmp_path):
    """Out of the zip, in another folder, without matplotlib."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.path.insert(0, 'site');"
        "import jumpstart as js, torch;"
        "assert js.__file__.endswith('site/jumpstart/__init__.py'), js.__file__;"
        "net = torch.nn.Linear(2, 1); s = js.supervised(net, torch.randn(9, 2), torch.randn(9, 1));"
        "assert js.jump(s).accepted; from jumpstart.cli import main; main(['--version'])"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("jumpstart ")


def test_citation_and_package_are_of_one_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {jumpstart.__version__}\n" in text
    assert "\nlicense: MIT\n" in text


def test_badges_say_what_the_package_says():
    """``python -m tests.docs.badges`` writes them."""
    assert {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.svg")} == badges()
    assert "≥ 3.11" in badges()["python.svg"]
