"""Counting kernel launches and synchronisations of a function on a GPU."""

import re
from typing import Callable, NamedTuple

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

LAUNCH = re.compile(r'cu(?:da)?Launch\w*Kernel\w*')
WAIT = re.compile(r'cuda(?:Stream|Event)Synchronize')  # not device synchronisations: the profiler makes some


class Launches(NamedTuple):
    """Work that a function submits to a GPU.

    Args:
        kernels: Number of kernel launches.
        waits: How often the CPU waited for the GPU, for example to read a value.
        busy_ms: Milliseconds for which the GPU was busy; otherwise it waited for the CPU.
    """

    kernels: int
    waits: int
    busy_ms: float


def count_launches(function: Callable[[], object]) -> Launches:
    """Call a function and count its CUDA driver calls. All counts are zero on a machine without a GPU."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    kernels, waits = (sum(bool(call.fullmatch(event.name())) for event in events) for call in (LAUNCH, WAIT))
    busy = sum(event.duration_ns() for event in events if event.device_type() == DeviceType.CUDA)
    return Launches(kernels, waits, round(busy / 1e6, 2))
