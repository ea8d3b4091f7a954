"""Calls of a function that can be repeated in backward with bitwise the same result."""

import functools
import inspect
import operator
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor, nn


class SavedTensor:
    """A tensor that must not be modified in place before backward.

    Args:
        tensor: The tensor; its storage is shared, not copied.
        name: What the tensor is, for the error message.
    """

    def __init__(self, tensor: Tensor, name: str) -> None:
        self.tensor, self.name, self.version = tensor.detach(), name, tensor._version

    def get(self) -> Tensor:
        """Return the tensor.

        Raises:
            RuntimeError: If the tensor was modified in place since it was saved.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(
                f'{self.name} of shape {tuple(self.tensor.shape)}, which backward through a reversible chain '
                'needs, was modified in place after the forward pass; modify a copy instead'
            )
        return self.tensor


class Call:
    """One call of a function, with all that is needed to repeat it in backward.

    Both passes record a graph, use the same autocast state, and choose cuDNN kernels by heuristics. Random
    generator states and buffers (such as the running statistics of BatchNorm) are stored only if the forward
    pass changed them; the recomputation leaves both unchanged.

    Args:
        function: A module, or any callable, which then has no parameters.
        device: Device on which the function computes.
        compiled: Whether to compile the function if it is a module.

    Attributes:
        trainable: Parameters that require a gradient.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device, compiled: bool = False) -> None:
        self.function, self.device = function, device
        self.autocast: dict[str, Any] = dict(
            device_type=device.type,
            enabled=torch.is_autocast_enabled(device.type),
            dtype=torch.get_autocast_dtype(device.type),
        )
        self.settings = _kernel_settings()
        self.modules = dict(function.named_modules()) if isinstance(function, nn.Module) else {}
        self.compiled = compiled and bool(self.modules)
        self.training_modes = {module: module.training for module in self.modules.values()}
        self.param_slots = _slots(self.modules, '_parameters')
        self.buffer_slots = _slots(self.modules, '_buffers')
        self.param_keys = [id(slot.tensor()) for slot in self.param_slots]
        params = dict(zip(self.param_keys, self.param_slots))  # a shared parameter occurs once
        self.params = {
            key: SavedTensor(slot.tensor(), f'parameter {slot.path}') for key, slot in params.items()
        }
        self.trainable = {key: slot.tensor() for key, slot in params.items() if slot.tensor().requires_grad}

    def forward(self, sources: Sequence[Tensor], needs_grad: Sequence[bool]) -> Tensor:
        """Call the function for the first time and return its detached result.

        Args:
            sources: Inputs of the function.
            needs_grad: For each input, whether it needs a gradient.

        Raises:
            RuntimeError: If the result depends on a tensor that requires a gradient but is neither an input
                nor a parameter.
        """
        self.needs_grad = needs_grad
        states, buffers = random_states(self.device), [slot.tensor() for slot in self.buffer_slots]
        before = [(buffer._version, buffer.clone()) for buffer in buffers]
        # Record a graph, because some functions choose other kernels without one, but save no activations.
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing):
            residual, leaves = self._call(sources)
        unmoved = all(map(torch.equal, states, random_states(self.device)))
        self.random_states = None if unmoved else states
        self.buffers = [
            copy if slot.tensor() is not buffer or buffer._version != version else None
            for slot, buffer, (version, copy) in zip(self.buffer_slots, buffers, before)
        ]
        _check_leaves(residual, leaves)
        return residual.detach()

    def recompute(self, sources: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Repeat the call.

        Args:
            sources: The inputs, with the same values as in :meth:`forward`.

        Returns:
            The result with its graph, and the leaves of the graph: the inputs, then the trainable parameters.

        Raises:
            RuntimeError: If a parameter was modified in place since :meth:`forward`.
        """
        now = [slot.tensor() for slot in self.buffer_slots]
        copies = {
            id(buffer): (buffer if copy is None else copy).clone() for buffer, copy in zip(now, self.buffers)
        }
        with (
            training_modes(self.training_modes),
            replayed(self.device, self.random_states),
            _substituted(self.buffer_slots, [copies[id(buffer)] for buffer in now]),
        ):
            return self._call(sources)

    def changed_settings(self) -> list[str]:
        """Return the names of kernel settings that have changed since the object was created."""
        return [name for name, value in _kernel_settings().items() if value != self.settings[name]]

    def _call(self, sources: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        sources = [source.detach().requires_grad_(n) for source, n in zip(sources, self.needs_grad)]
        # Differentiate with respect to detached copies; autograd then gets the gradients of the parameters
        # from the coupling's backward, so that hooks on parameters run once.
        params = {
            key: saved.get().detach().requires_grad_(key in self.trainable)
            for key, saved in self.params.items()
        }
        # Without a cast cache, which could return weights that belong to another graph.
        with (
            _substituted(self.param_slots, [params[key] for key in self.param_keys]),
            torch.enable_grad(),
            torch.autocast(**self.autocast, cache_enabled=False),
            _without_cudnn_benchmark(),
        ):
            residual = (_compiled() if self.compiled else _apply)(self.function, sources)
        return residual, [*sources, *(params[key] for key in self.trainable)]


class _Slot(NamedTuple):
    """The place of a parameter or buffer: ``tensors[name]`` of a module, called ``path`` in the function."""

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
    """Temporarily replace parameters or buffers, like ``torch.func.functional_call``.

    ``functional_call`` looks up every name in every call, which takes up to a fifth of the CPU time of a
    forward pass.
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
    """Return ``_apply``, compiled once for all functions of the same structure and shapes."""
    # The default limit of 8 variants is too low for many different functions. torch 2.10 lacks the argument.
    has_limit = 'recompile_limit' in inspect.signature(torch.compile).parameters
    options: dict[str, Any] = dict(recompile_limit=128) if has_limit else {}
    return torch.compile(_apply, **options)


@contextmanager
def _without_cudnn_benchmark() -> Iterator[None]:
    """Temporarily choose cuDNN kernels by heuristics, even if ``torch.backends.cudnn.benchmark`` is on.

    Benchmarking may choose different kernels in forward and backward: its caches are thread-local (ATen,
    ``Conv_v8.cpp``), and backward runs in another thread.
    """
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


def _kernel_settings() -> dict[str, Any]:
    """Return the global settings that influence which kernels run."""
    return {
        f'torch.{name}': operator.attrgetter(name)(torch)
        for name in (
            'backends.cuda.matmul.fp32_precision',
            'backends.cudnn.conv.fp32_precision',
            'backends.mkldnn.matmul.fp32_precision',
            'backends.mkldnn.conv.fp32_precision',
            'backends.cudnn.deterministic',
        )
    } | {'torch.use_deterministic_algorithms': torch.are_deterministic_algorithms_enabled()}


def random_states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's default generators: the CPU's, then the device's if it is not the CPU."""
    states = [torch.get_rng_state()]
    if device.type != 'cpu':
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


@contextmanager
def replayed(device: torch.device, states: Sequence[Tensor] | None) -> Iterator[None]:
    """Temporarily set the default generators to ``states``, see :func:`random_states`. No-op for None."""
    if states is None:
        yield
        return
    accelerators = [] if device.type == 'cpu' else [device]
    with torch.random.fork_rng(accelerators, device_type=device.type):
        torch.set_rng_state(states[0])
        for accelerator, state in zip(accelerators, states[1:]):
            torch.get_device_module(accelerator).set_rng_state(state, accelerator)
        yield


@contextmanager
def training_modes(modes: Mapping[nn.Module, bool]) -> Iterator[None]:
    """Temporarily set ``module.training`` of every module."""
    changed = {module: mode for module, mode in modes.items() if module.training != mode}
    try:
        for module, mode in changed.items():
            module.training = mode
        yield
    finally:
        for module, mode in changed.items():
            module.training = not mode


def _check_leaves(residual: Tensor, known: Sequence[Tensor]) -> None:
    """Raise a RuntimeError if ``residual`` depends on a leaf tensor that would not get its gradient."""
    known_ids = {id(tensor) for tensor in known}
    nodes = [residual.grad_fn] if residual.grad_fn else []
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        children = node.next_functions
        if not children and hasattr(node, 'variable') and id(node.variable) not in known_ids:
            raise RuntimeError(
                'a function in a reversible chain uses a tensor of shape '
                f'{tuple(node.variable.shape)} that requires a gradient but is neither one of its inputs nor '
                'a parameter of its module during the call. Modules with further references to their '
                'parameters hide them, and so do DataParallel and FullyShardedDataParallel (FSDP1): use '
                "DistributedDataParallel, or torch's fully_shard on whole columns or the whole model"
            )
        for child, _ in children:
            if child is not None and child not in seen:
                seen.add(child)
                nodes.append(child)
