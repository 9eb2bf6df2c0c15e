"""Sums and rows over the processes of a ``torch.distributed`` group: the one room that knows ranks.

Every process takes the same branches on the same numbers: what is about samples is gathered or summed, everything else
is computed by each from equal numbers. See docs/distributed.md.
"""

from .shards import Shards
from .world import Traffic, World
from .wrapped import entry, gathered, joined, require_group, require_same_program, warn_alone

__all__ = [
    "Shards", "Traffic", "World", "entry", "gathered", "joined", "require_group", "require_same_program", "warn_alone",
]  # fmt: skip
