"""Sets that collocation points are drawn from: boxes, disks, polygons, their boundaries, products and differences."""

from .box import Box, Interval
from .domain import Domain
from .sampler import Sampler, as_domain

__all__ = ["Box", "Domain", "Interval", "Sampler", "as_domain"]
