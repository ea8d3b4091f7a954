"""How much a function asks of a GPU's driver."""

import re
from typing import Callable, NamedTuple

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

LAUNCH = re.compile(r'cu(?:da)?Launch\w*Kernel\w*')
WAIT = re.compile(r'cuda(?:Stream|Event)Synchronize')  # the profiler itself waits for the device


class Launches(NamedTuple):
    """Calls of the driver.

    Args:
        kernels: Kernels that were started.
        waits: Times that the CPU waited for the GPU, as it does to read a value.
        busy_ms: Milliseconds that the GPU computed. The rest of a step it waited for the CPU.
    """

    kernels: int
    waits: int
    busy_ms: float


def count_launches(function: Callable[[], object]) -> Launches:
    """Call a function and count the calls of CUDA's driver; none on a machine without a GPU."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    kernels, waits = (sum(bool(call.fullmatch(event.name())) for event in events) for call in (LAUNCH, WAIT))
    busy = sum(event.duration_ns() for event in events if event.device_type() == DeviceType.CUDA)
    return Launches(kernels, waits, round(busy / 1e6, 2))
