"""Population-risk gates: pure rules, and the statistics that they are asked about. Knows no flow and no solver."""

from .averages import finite_sample, open_rate
from .groups import groups
from .monitor import Monitor, Reading
from .rules import RULES, Gate, hard, snr, soft
from .samples import Recorder, record
from .statistics import moments, population_decrease

__all__ = [
    "RULES",
    "Gate",
    "Monitor",
    "Reading",
    "Recorder",
    "finite_sample",
    "groups",
    "hard",
    "moments",
    "open_rate",
    "population_decrease",
    "record",
    "snr",
    "soft",
]
