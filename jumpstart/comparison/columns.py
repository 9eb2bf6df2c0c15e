"""Columns of a comparison's rows."""

NUMBERS = ("step", "gradient_evaluations", "seconds", "loss")  # in every row
COUNTS = ("jumps", "accepted")  # in some
FAILED = "failed"  # the column that says what ended a contender
