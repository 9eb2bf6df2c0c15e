"""Preferences, some of them swapped: does a gate keep the swapped ones out of a language model?

python -m experiments.noisy_preferences --tuning [--out DIR]                       chooses rates, for the other command
python -m experiments.noisy_preferences [--quick] [--seeds N] [--minutes M] [--out DIR]
python -m experiments.noisy_preferences.jump [--quick] [--seeds N] [--out DIR]     the same, by one jump

Right and wrong answers to school problems; SmolLM2-135M, whose last layer is adapted (LoRA of rank 8 in all of its
linear layers) to 256 pairs by DPO, β = 0.1, with none or 30% of them swapped. Probabilities are among the tokens that
occur in any answer. Accuracy: of the reward on 100 clean pairs of the same problems, and on 100 of others. One thread;
seconds of the process, looks apart.
"""

from __future__ import annotations

from ..noisy import main
from . import pairs, policy
from .task import TASK, TOY

if __name__ == "__main__":
    main.main(TASK, __doc__, TOY, (pairs, policy))
