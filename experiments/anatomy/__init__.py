"""What the experiments on trajectory operators share: tasks with noise in their targets, recorded runs, and where the
noise went.

For F.mse_loss of N outputs, g(s) = B (u − y), B = 2/N: targets y = true + noise split it into a part of true targets
and −B·noise. Three questions about the latter (docs/theory.md, section 11):

- learned: how much of its energy the run has taken away, gᵀ W_S g over ½ B⁻¹ ‖g‖², which is W_S's ceiling. trapped is
  the rest; reservoir is the share in directions less than half learned.
- passed: mean square of what it does to query outputs, G_Q g, over the mean square of the noise itself.
- invisible: the share in directions that move the queries by less than a tenth of what the most visible one does.
"""

from .claims import VERDICT, Claim, banded, concluded, judged, ranked, told
from .noise import anatomy, faithful, learned, paired, passed, seldom
from .runs import FAITHFUL, Look, Task, Training, kernel, last, recorded, smooth

__all__ = [
    "FAITHFUL",
    "VERDICT",
    "Claim",
    "Look",
    "Task",
    "Training",
    "anatomy",
    "banded",
    "concluded",
    "faithful",
    "judged",
    "kernel",
    "last",
    "learned",
    "paired",
    "passed",
    "ranked",
    "recorded",
    "seldom",
    "smooth",
    "told",
]
