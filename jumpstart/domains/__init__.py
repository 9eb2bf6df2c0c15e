"""Sets that collocation points are drawn from: boxes, disks, polygons, their boundaries, products and differences."""

from .box import Box, Interval
from .disk import Disk
from .domain import Domain
from .polygon import Polygon
from .sampler import Sampler, as_domain

__all__ = ["Box", "Disk", "Domain", "Interval", "Polygon", "Sampler", "as_domain"]
