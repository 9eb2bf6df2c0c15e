"""Tests of the one file format and of the fingerprint of a problem."""
