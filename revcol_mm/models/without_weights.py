"""Building models on torch's meta device, which needs no memory for their weights."""

from contextlib import contextmanager
from typing import Any, Callable, Iterator

import torch
from torch.overrides import TorchFunctionMode


class _LinspaceOnCpu(TorchFunctionMode):
    """Create :func:`torch.linspace` on the CPU: constructors read drop-path rates from its values."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Iterator[None]:
    """Build models on the meta device inside the context: tensors have shapes, but no values."""
    with torch.device('meta'), _LinspaceOnCpu():
        yield
