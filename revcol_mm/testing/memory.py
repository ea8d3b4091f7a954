"""Peak memory of a function."""

import os
from typing import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object], device: str | torch.device = 'cpu') -> int:
    """Call a function and return the peak of allocated memory in bytes, relative to that before the call.

    Read from the caching allocator on a GPU, and from the profiler, which records every allocation, on a CPU.
    """
    device = torch.device(device)
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Otherwise torch 2.14's profiler prints each start and stop and, as an error, that there is no GPU.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == '[memory]']
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
