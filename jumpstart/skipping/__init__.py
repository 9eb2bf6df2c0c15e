"""Skips: the user's own optimizer, replayed on a forecast of the gradient that real gradients correct."""
