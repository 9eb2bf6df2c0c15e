"""Jumps inside a training loop that stays the user's."""
