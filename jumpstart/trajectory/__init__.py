"""Room for operators along a real trajectory (docs/theory.md); nothing lives here yet."""
