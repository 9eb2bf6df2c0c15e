"""Minibatch runs from one start: where they drift together, and where they diffuse apart."""
