"""Calling a function a second time such that it computes the same bits."""

import functools
import inspect
from contextlib import contextmanager
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Kept:
    """A tensor that must stay as it is until backward.

    Args:
        tensor: It.
        name: What it is, in an error message.
    """

    def __init__(self, tensor: Tensor, name: str) -> None:
        self.tensor, self.name, self.version = tensor.detach(), name, tensor._version

    def get(self) -> Tensor:
        """Return the tensor, or raise a RuntimeError if it was changed in place since."""
        if self.tensor._version != self.version:
            raise RuntimeError(
                f'{self.name} {tuple(self.tensor.shape)}, which backward through a reversible chain needs, '
                'was changed in place since'
            )
        return self.tensor


class Call:
    """One call of a function, and what is needed to repeat it.

    Both times the function runs with a graph, under the same autocast and with kernels chosen by rule. Of its
    state is kept what the first call changed: random generators, and buffers such as the running statistics
    of BatchNorm, which the second call leaves alone.

    Args:
        function: A module; or anything callable, which has no parameters then.
        device: Device that it computes on.
        needs_grad: Which of its inputs need a gradient.
        compiled: Whether to compile the function.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        device: torch.device,
        needs_grad: Sequence[bool],
        compiled: bool = False,
    ) -> None:
        self.function, self.device = function, device
        self.needs_grad, self.compiled = needs_grad, compiled
        self.autocast = dict(
            device_type=device.type,
            enabled=torch.is_autocast_enabled(device.type),
            dtype=torch.get_autocast_dtype(device.type),
        )
        self.settings = _settings()
        self.modules = list(function.modules()) if isinstance(function, nn.Module) else []
        self.modes = [module.training for module in self.modules]
        params = dict(function.named_parameters()) if self.modules else {}
        self.params = {name: Kept(param, f'parameter {name}') for name, param in params.items()}
        self.trainable = {name: param for name, param in params.items() if param.requires_grad}

    def first(self, sources: Sequence[Tensor]) -> Tensor:
        """Call the function for the first time.

        Raises:
            RuntimeError: If the result depends on a tensor that needs a gradient, but is neither a source nor
                a parameter.
        """
        before, buffers = random_states(self.device), self._buffers()
        copies = {name: (buffer._version, buffer.clone()) for name, buffer in buffers.items()}
        # With a graph, or some functions would take other kernels, but one that stores nothing.
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing):
            residual, leaves = self._call(sources, {})
        unmoved = all(map(torch.equal, before, random_states(self.device)))
        self.random_states = None if unmoved else before
        self.buffers = {
            name: copy for name, (version, copy) in copies.items() if buffers[name]._version != version
        }
        _refuse_other_leaves(residual, leaves)
        return residual.detach()

    def again(self, sources: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Repeat the call.

        Args:
            sources: The same values as the first time.

        Returns:
            The result with its graph, and the graph's leaves: the sources, then the trainable parameters.

        Raises:
            RuntimeError: If a parameter was changed in place since.
        """
        buffers = {name: self.buffers.get(name, buffer).clone() for name, buffer in self._buffers().items()}
        with _modes(self.modules, self.modes), replayed(self.device, self.random_states):
            return self._call(sources, buffers)

    def changed_settings(self) -> list[str]:
        """Names of settings that are others than in the first call."""
        return [name for name, value in _settings().items() if value != self.settings[name]]

    def _buffers(self) -> dict[str, Tensor]:
        return dict(self.function.named_buffers()) if self.modules else {}

    def _call(self, sources: Sequence[Tensor], buffers: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        sources = [source.detach().requires_grad_(n) for source, n in zip(sources, self.needs_grad)]
        # In the parameters' place others, whose gradients are handed to autograd: hooks see them once.
        params = {n: p.get().detach().requires_grad_(n in self.trainable) for n, p in self.params.items()}
        # No cache of casts, which could hold weights of another graph.
        with torch.enable_grad(), torch.autocast(**self.autocast, cache_enabled=False), kernels_by_rule():
            if self.modules:
                call = _compiled_call() if self.compiled else functional_call
                residual = call(self.function, {**params, **buffers}, tuple(sources))
            else:
                residual = self.function(*sources)
        return residual, [*sources, *(params[name] for name in self.trainable)]


@functools.cache
def _compiled_call() -> Callable:
    """``functional_call``, compiled: once for all functions of the same structure and shapes."""
    # The usual limit of 8 variants is too low for many functions; torch 2.10 has no other limit to give.
    has_limit = 'recompile_limit' in inspect.signature(torch.compile).parameters
    return torch.compile(functional_call, **dict(recompile_limit=128) if has_limit else {})


@contextmanager
def kernels_by_rule() -> Iterator[None]:
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


def _settings() -> dict[str, object]:
    """Settings of the process that choose kernels."""
    return {
        f'torch.{name}': functools.reduce(lambda part, key: getattr(part, key, None), name.split('.'), torch)
        for name in (
            'backends.cuda.matmul.fp32_precision',
            'backends.cudnn.conv.fp32_precision',
            'backends.mkldnn.matmul.fp32_precision',
            'backends.mkldnn.conv.fp32_precision',
            'backends.cudnn.deterministic',
        )
    } | {'torch.use_deterministic_algorithms': torch.are_deterministic_algorithms_enabled()}


def random_states(device: torch.device) -> list[Tensor]:
    """States of torch's generators: the CPU's, and this device's if it is another."""
    states = [torch.get_rng_state()]
    if device.type != 'cpu':
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def _set_random_states(device: torch.device, states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type != 'cpu':
        torch.get_device_module(device).set_rng_state(states[1], device)


@contextmanager
def replayed(device: torch.device, states: Sequence[Tensor] | None) -> Iterator[None]:
    """Draw the same random numbers again; the generators go on afterwards as if it had not been."""
    if states is None:
        yield
        return
    now = random_states(device)
    try:
        _set_random_states(device, states)
        yield
    finally:
        _set_random_states(device, now)


@contextmanager
def _modes(modules: Sequence[nn.Module], modes: Sequence[bool]) -> Iterator[None]:
    """Put modules into these modes, training or evaluation, for a while."""
    now = [module.training for module in modules]
    try:
        for module, mode in zip(modules, modes):
            module.training = mode
        yield
    finally:
        for module, mode in zip(modules, now):
            module.training = mode


def _refuse_other_leaves(residual: Tensor, known: Sequence[Tensor]) -> None:
    """Raise an error if ``residual`` depends on a leaf whose gradient would get lost."""
    known = {id(tensor) for tensor in known}
    nodes = [residual.grad_fn] if residual.grad_fn else []
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        children = node.next_functions
        if not children and hasattr(node, 'variable') and id(node.variable) not in known:
            raise RuntimeError(
                f'a function in a reversible chain uses a tensor {tuple(node.variable.shape)} that needs a '
                'gradient, but is neither among its inputs nor, when it is called, a parameter of its '
                'module. DataParallel and FullyShardedDataParallel (FSDP1) hide parameters: use '
                "DistributedDataParallel, or torch's fully_shard on whole columns or the whole model"
            )
        for child, _ in children:
            if child is not None and child not in seen:
                seen.add(child)
                nodes.append(child)
