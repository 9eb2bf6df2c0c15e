"""Checkpoints of a fit: tensors and plain numbers in one file, written whole or not at all."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..errors import ArchiveError
from ..jumping.levenberg_marquardt import Course
from ..jumping.trust import Trust
from ..objectives.objective import Objective

KIND = "jumpstart fit 1"


def save(path: str | Path, objective: Objective, state: Mapping[str, Any]) -> None:
    """Write the state of a fit; an interrupt leaves the file as it was."""
    space = objective.space
    course = state["course"]
    content = {
        **state,
        "trust": asdict(state["trust"]),
        "course": None if course is None else {"best": course.best, "heading": course.heading},
    }
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(target.name + ".part")
    torch.save(
        {"kind": KIND, "names": list(space.names), "shapes": [list(s) for s in space.shapes], "state": content}, half
    )
    os.replace(half, target)


def load(path: str | Path, objective: Objective, fields: set[str]) -> dict[str, Any]:
    """The state of a fit of this model, as it was saved.

    Raises:
        ArchiveError: the file is no checkpoint of a fit, or one of another model.
    """
    try:
        content = torch.load(path, weights_only=True, map_location=objective.space.device)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ArchiveError(f"{path} is no checkpoint of js.fit ({error}): give another path, or delete it.") from error
    if not isinstance(content, dict) or content.get("kind") != KIND or set(content.get("state", ())) != fields:
        raise ArchiveError(f"{path} is no checkpoint of this version's js.fit: give another path, or delete it.")
    here = [list(objective.space.names), [list(s) for s in objective.space.shapes]]
    if [content["names"], content["shapes"]] != here:
        raise ArchiveError(
            f"{path} was saved for parameters {content['names'][:4]} of shapes {content['shapes'][:4]}, the model has "
            f"{here[0][:4]} of shapes {here[1][:4]}: give another path, or delete it."
        )
    state = content["state"]
    course = state["course"]
    return {**state, "trust": Trust(**state["trust"]), "course": None if course is None else Course(**course)}
