"""Two jobs on the same GPUs: who may share, and what that is.

Both ask for whole GPUs, and the first has them as if it were alone: books count them as taken,
so that nobody else comes. A second job that says how fast it is beside the first, and of which
the first says the same, may be put on the very same devices. It takes CPUs and memory besides.
That both fit into the memory of the GPUs is what having been measured together says.
"""

from scheduler.core.model import JobSpec


def may_share(one: JobSpec, other: JobSpec, gpu_type: str) -> bool:
    """Return whether both say how fast they are beside each other, on as many GPUs."""
    return (
        one.total_gpu_milli == other.total_gpu_milli
        and one.speed_beside(other.profile, gpu_type) > 0
        and other.speed_beside(one.profile, gpu_type) > 0
    )
