"""Trainers of other packages, which own their loop. The packages are imported in the files of their names alone."""
