"""What each part of a jump is worth, on the three kinds of problem: ``python -m experiments.ablation --only jumps``."""
