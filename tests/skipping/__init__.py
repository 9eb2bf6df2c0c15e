"""Tests of `jumpstart.skipping`."""
