"""Population-risk gates: pure rules, and the statistics that they are asked about. Knows no flow and no solver."""

from .rules import RULES, Gate, hard, snr, soft
from .statistics import moments, population_decrease

__all__ = ["RULES", "Gate", "hard", "moments", "population_decrease", "snr", "soft"]
