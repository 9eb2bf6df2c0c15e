"""Grokking in modular arithmetic: steps to 95% held-out accuracy, every contender tuned, gates among them."""
