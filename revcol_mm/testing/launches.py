"""How much a function asks of a GPU's driver."""

import re
from typing import Callable, NamedTuple

from torch.profiler import ProfilerActivity, profile

LAUNCH = re.compile(r'cu(?:da)?Launch\w*Kernel\w*')
WAIT = re.compile(r'cuda(?:Stream|Event)Synchronize')  # the profiler itself waits for the device


class Launches(NamedTuple):
    """Calls of the driver.

    Args:
        kernels: Kernels that were started.
        waits: Times that the CPU waited for the GPU, as it does to read a value.
    """

    kernels: int
    waits: int


def count_launches(function: Callable[[], object]) -> Launches:
    """Call a function and count the calls of CUDA's driver; none on a machine without a GPU."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        function()
    names = [event.name() for event in profiler.profiler.kineto_results.events()]
    return Launches(*(sum(map(bool, map(call.fullmatch, names))) for call in (LAUNCH, WAIT)))
