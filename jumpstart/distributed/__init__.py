"""Sums and rows over the processes of a ``torch.distributed`` group: the one room that knows ranks.

Every process takes the same branches on the same numbers: what is about samples is gathered or summed, everything else
is computed by each from equal numbers. See docs/distributed.md.
"""

from .wrapped import gathered

__all__ = ["gathered"]
