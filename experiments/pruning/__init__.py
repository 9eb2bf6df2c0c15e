"""Weights ranked by what they did in the signal channel, and pruned."""
