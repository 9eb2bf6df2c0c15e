"""``fit``: jumps until a tolerance or a budget, in stages, resumable."""
