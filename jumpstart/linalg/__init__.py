"""Algorithms for matrices and stiff systems that know no network."""
