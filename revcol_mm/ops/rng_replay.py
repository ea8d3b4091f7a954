"""Run a function a second time as it ran the first time: same random numbers, same autocast, same kernels."""

from contextlib import contextmanager
from typing import Iterator

import torch


@contextmanager
def untried_kernels() -> Iterator[None]:
    """Let cuDNN choose kernels by rules for a while, even if ``torch.backends.cudnn.benchmark`` is on.

    Kernels that it tries out may differ between two runs: every thread tries for itself (the caches in ATen's
    ``Conv_v8.cpp`` are thread-local), and backward runs in another thread than forward.
    """
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


class CallState:
    """State of the random generators and of autocast at the moment of construction.

    Args:
        device: Device that the call computes on; its generator is captured beside the CPU's.
        before: An earlier state, to share the CPU generator's 5 KB with where no number was drawn since.
    """

    def __init__(self, device: torch.device, before: 'CallState | None' = None) -> None:
        self.device = device
        self.cpu_rng = torch.get_rng_state()
        if before and torch.equal(self.cpu_rng, before.cpu_rng):
            self.cpu_rng = before.cpu_rng
        self.module = None if device.type == 'cpu' else torch.get_device_module(device)
        self.device_rng = self.module.get_rng_state(device) if self.module else None
        self.autocast = dict(
            device_type=device.type,
            enabled=torch.is_autocast_enabled(device.type),
            dtype=torch.get_autocast_dtype(device.type),
        )

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Restore the state for a ``with`` block; the generators go on afterwards as if it had not been."""
        cpu_rng = torch.get_rng_state()
        device_rng = self.module.get_rng_state(self.device) if self.module else None
        try:
            torch.set_rng_state(self.cpu_rng)
            if self.module:
                self.module.set_rng_state(self.device_rng, self.device)
            # No cache: it could hold a weight's cast from a pass without gradients.
            with torch.autocast(**self.autocast, cache_enabled=False), untried_kernels():
                yield
        finally:
            torch.set_rng_state(cpu_rng)
            if self.module:
                self.module.set_rng_state(device_rng, self.device)
