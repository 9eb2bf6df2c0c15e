"""What docs/gates.md says of measurements: a section for each experiment, from its results file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import gate_costs, isometry, noisy_image, noisy_pinn
from ..gate_statistics import summary as gate_statistics
from ..grokking import summary as grokking
from ..label_noise import verdict as label_noise
from ..noisy import summary as noisy
from ..noisy_preferences import jump
from ..noisy_preferences.task import TASK as PREFERENCES
from . import UNMEASURED, measured, told

Page = Callable[[dict[str, Any]], str]


def preferences(content: dict[str, Any]) -> str:
    """By steps, then by jump."""
    jumped = told("noisy_preferences/jump", jump.page)
    return f"{noisy.page(PREFERENCES, content)}\n\n**By one jump.** {JUMPED}\n\n{jumped}"


JUMPED = (
    "Margins of all pairs as outputs, the logistic loss's flow solved on their dense kernel, the horizon chosen by "
    "leaving pairs out, among those that the network follows on the pairs that it learns."
)

# Experiment -> heading, a sentence, and what makes its tables.
SECTIONS: dict[str, tuple[str, str, Page]] = {
    "label_noise": (
        "Wrong labels",
        "Trained to the end; the control is plain AdamW at lower rates, for as many epochs.",
        label_noise.page,
    ),
    "grokking": (
        "Grokking",
        "Steps and seconds to 95% held-out accuracy; everybody tuned over one grid.",
        grokking.page,
    ),
    "noisy_pinn": (
        "A transported wave from noisy initial data",
        "u_t + 5u_x = 0 from 64 noisy samples; relative error against the exact solution, at the end without stopping. "
        "The validation part that rates were chosen by has 13 samples.",
        noisy_pinn.page,
    ),
    "noisy_image": (
        "An image from noisy pixels",
        "64 × 64 pixels by a network of Fourier features; PSNR against the clean image, at the end without stopping.",
        noisy_image.page,
    ),
    "noisy_preferences": (
        "Preferences, some of them swapped",
        "DPO on 256 pairs of right and wrong answers to school problems, by the last layer of a language model of 135M "
        "parameters. Accuracy of the reward on 100 clean held-out pairs of the same problems, and on as many of "
        "other problems; of so few it is known to five points.",
        preferences,
    ),
    "gate_statistics": (
        "What opens without a signal",
        "Closed form, simulation, a network's own gradients; then each mistake by itself.",
        gate_statistics.page,
    ),
    "gate_costs": (
        "What a step costs",
        "One thread; medians of rounds in which the arms take turns, and the range of their ratios.",
        gate_costs.page,
    ),
    "isometry": (
        "Isometry, on a sequence of tasks",
        "The `isometry` term beside the gate (AdamO, Rosseau et al., arXiv:2606.09762): held-out accuracy after each "
        "of 60 tasks, digits with pixels permuted anew.",
        isometry.page,
    ),
}


def gates_verdict() -> str:
    """Whether a gate has been more than a slower clock, in a few sentences."""
    content = measured("label_noise")
    if content is None:
        return UNMEASURED.format(name="label_noise")
    said = [label_noise.page(content).split("\n")[0]]
    for name in ("noisy_pinn", "noisy_image", "noisy_preferences"):
        heading, _, page = SECTIONS[name]
        if (content := measured(name)) is not None:
            said.append(f"{heading}: {page(content).splitlines()[0].replace('**', '')}")
    return "\n\n".join(said)


def gates() -> str:
    """All of them, in order; of what has no results yet, how to get them."""
    return "\n\n".join(
        f"### {heading}\n\n{sentence}\n\n{told(name, page)}" for name, (heading, sentence, page) in SECTIONS.items()
    )
