"""Building models without memory for their weights."""

from contextlib import contextmanager
from typing import Any, Callable, Iterator

import torch
from torch.overrides import TorchFunctionMode


class _RatesOnCpu(TorchFunctionMode):
    """Keeps what :func:`torch.linspace` makes on the CPU, from which constructors read drop-path rates."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Iterator[None]:
    """Build models on torch's meta device: tensors have shapes, but no values and no memory."""
    with torch.device('meta'), _RatesOnCpu():
        yield
