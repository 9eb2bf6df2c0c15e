"""Preferences, some of them swapped: a language model's upper layers, by steps with and without a gate, and by jump."""
