"""Cheaper ways to answer for the linearized run, and the choice among all of them by counted cost."""
