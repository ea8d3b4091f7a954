"""Calling a function a second time such that it computes the same bits."""

import functools
import inspect
from contextlib import contextmanager
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

import torch
from torch import Tensor, nn


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
        compiled: Whether to compile the function, if it is a module.

    Attributes:
        trainable: Parameters that need a gradient.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device, compiled: bool = False) -> None:
        self.function, self.device = function, device
        self.autocast = dict(
            device_type=device.type,
            enabled=torch.is_autocast_enabled(device.type),
            dtype=torch.get_autocast_dtype(device.type),
        )
        self.settings = _settings()
        self.modules = dict(function.named_modules()) if isinstance(function, nn.Module) else {}
        self.compiled = compiled and bool(self.modules)
        self.modes = [module.training for module in self.modules.values()]
        self.param_slots = _slots(self.modules, '_parameters')
        self.buffer_slots = _slots(self.modules, '_buffers')
        self.param_keys = [id(slot.tensor()) for slot in self.param_slots]
        params = dict(zip(self.param_keys, self.param_slots))  # tied ones once
        self.params = {key: Kept(slot.tensor(), f'parameter {slot.path}') for key, slot in params.items()}
        self.trainable = {key: slot.tensor() for key, slot in params.items() if slot.tensor().requires_grad}

    def first(self, sources: Sequence[Tensor], needs_grad: Sequence[bool]) -> Tensor:
        """Call the function for the first time.

        Args:
            sources: Its inputs.
            needs_grad: Which of them need a gradient.

        Raises:
            RuntimeError: If the result depends on a tensor that needs a gradient, but is neither a source nor
                a parameter.
        """
        self.needs_grad = needs_grad
        states, buffers = random_states(self.device), [slot.tensor() for slot in self.buffer_slots]
        before = [(buffer._version, buffer.clone()) for buffer in buffers]
        # With a graph, or some functions would take other kernels, but one that stores nothing.
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing):
            residual, leaves = self._call(sources)
        unmoved = all(map(torch.equal, states, random_states(self.device)))
        self.random_states = None if unmoved else states
        self.buffers = [
            copy if buffer._version != version else None for buffer, (version, copy) in zip(buffers, before)
        ]
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
        now = [slot.tensor() for slot in self.buffer_slots]
        copies = {
            id(buffer): (buffer if copy is None else copy).clone() for buffer, copy in zip(now, self.buffers)
        }
        with (
            _modes(self.modules.values(), self.modes),
            replayed(self.device, self.random_states),
            _substituted(self.buffer_slots, [copies[id(buffer)] for buffer in now]),
        ):
            return self._call(sources)

    def changed_settings(self) -> list[str]:
        """Names of settings that are others than in the first call."""
        return [name for name, value in _settings().items() if value != self.settings[name]]

    def _call(self, sources: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        sources = [source.detach().requires_grad_(n) for source, n in zip(sources, self.needs_grad)]
        # In the parameters' place others, whose gradients are handed to autograd: hooks see them once.
        params = {
            key: kept.get().detach().requires_grad_(key in self.trainable)
            for key, kept in self.params.items()
        }
        # No cache of casts, which could hold weights of another graph.
        with (
            _substituted(self.param_slots, [params[key] for key in self.param_keys]),
            torch.enable_grad(),
            torch.autocast(**self.autocast, cache_enabled=False),
            kernels_by_rule(),
        ):
            residual = (_compiled() if self.compiled else _apply)(self.function, sources)
        return residual, [*sources, *(params[key] for key in self.trainable)]


class _Slot(NamedTuple):
    """Where a module holds a tensor.

    Args:
        tensors: The module's dictionary of such tensors.
        name: The tensor's name in it.
        path: Its name in the function.
    """

    tensors: dict[str, Tensor]
    name: str
    path: str

    def tensor(self) -> Tensor:
        return self.tensors[self.name]


def _slots(modules: dict[str, nn.Module], kind: str) -> list[_Slot]:
    return [
        _Slot(tensors, name, f'{path}.{name}' if path else name)
        for path, module in modules.items()
        for tensors in [getattr(module, kind)]
        for name, tensor in tensors.items()
        if tensor is not None
    ]


@contextmanager
def _substituted(slots: Sequence[_Slot], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Put other tensors there for a while, as ``torch.func.functional_call`` does.

    That looks up every name in every call: on the host it takes as long as a fifth of the forward pass.
    """
    before = [slot.tensor() for slot in slots]
    try:
        for slot, tensor in zip(slots, tensors):
            slot.tensors[slot.name] = tensor
        yield
    finally:
        for slot, tensor in zip(slots, before):
            slot.tensors[slot.name] = tensor


def _apply(function: Callable[..., Tensor], sources: Sequence[Tensor]) -> Tensor:
    return function(*sources)


@functools.cache
def _compiled() -> Callable:
    """``_apply``, compiled: once for all functions of the same structure and shapes."""
    # The usual limit of 8 variants is too low for many functions; torch 2.10 has no other limit to give.
    has_limit = 'recompile_limit' in inspect.signature(torch.compile).parameters
    return torch.compile(_apply, **dict(recompile_limit=128) if has_limit else {})


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
def _modes(modules: Iterable[nn.Module], modes: Sequence[bool]) -> Iterator[None]:
    """Put modules into these modes, training or evaluation, for a while."""
    changed = [(module, mode) for module, mode in zip(modules, modes) if module.training != mode]
    try:
        for module, mode in changed:
            module.training = mode
        yield
    finally:
        for module, mode in changed:
            module.training = not mode


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
