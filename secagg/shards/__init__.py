"""The sum of a round without a server: updates lie in a folder or an object store, any machine adds a range of them.

Words add without a key, and each for itself. So a task takes a range of frames of all updates, in memory that does not
depend on the model; `ThreadPool` runs the tasks here, `secagg.integrations.ray.RayPool` on a cluster.
"""

from .driver import Report, aggregate
from .job import Pool, RangeDone, SumJob
from .pool import ThreadPool
from .ranges import sum_range

__all__ = ["Pool", "RangeDone", "Report", "SumJob", "ThreadPool", "aggregate", "sum_range"]
