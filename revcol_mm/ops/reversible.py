"""Training a chain of links without storing activations.

Backward calls every ``F`` a second time, with a graph, and uses the result twice: to compute gradients, and
to reconstruct ``c[i-1][l] = (c[i][l] - F[i][l](...)) / alpha[i][l]``. Every coupling would multiply an error
of the reconstruction, by ``1 / alpha`` and through ``F``. Therefore the reconstruction is exact to the last
bit (see :mod:`.exact_sums`), and a checksum verifies every ``c[i-1][l]``.
"""

import weakref
from typing import Any, Sequence

import torch
from torch import Tensor

from . import exact_couplings
from .call import Call, SavedTensor
from .coupling import Coupling
from .exact_couplings import CodePlan
from .exact_sums import State


class ReversibleChain:
    """One forward pass through a chain of links, whose features backward reconstructs.

    Args:
        links: All links that will run, in this order. Their alphas are read in one transfer; without this
            argument every link reads its own alphas, which each time makes the CPU wait for the GPU. When a
            link runs, its alphas may be other tensors with the same values.

    Note:
        Each coupling is one autograd node whose inputs are the features, alpha and the parameters of ``F``.
        Hooks, DDP and gradient accumulation therefore work as in a plain chain; FSDP2 works if it shards
        whole links or more. The second call of ``F`` gets the random numbers, autocast state, training mode
        and buffers of the first. A RuntimeError is raised

        - if an ``F`` depends on other tensors that require a gradient than inputs and parameters (FSDP1),
        - if the chain is differentiated twice,
        - if a tensor that backward needs was modified in place,
        - if a reconstruction is not exact: an ``F`` gave another result in its second call, or a level has
          grown to about 2^12 times (in float64, 2^8) its largest value in the first link. On a GPU this
          must not make the CPU wait. Backward then sets the gradients to nan, and the next forward pass, or
          :func:`check_reconstruction`, raises the error.
    """

    def __init__(self, links: Sequence[Sequence[Coupling]] = ()) -> None:
        self.alphas = [coupling.alpha for link in links for coupling in link]
        self.plans: list[CodePlan] = []  # one for each of these alphas
        self.values: list[_LevelValue | None] = []  # per level; None before its first coupling
        self.num_links = self.num_couplings = self.code_bytes = 0

    def __call__(self, link: Sequence[Coupling], x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Run the next link; the reversible counterpart of :func:`couple`.

        Args:
            link: The couplings, in the order in which they run.
            x: Constant input of the chain.
            features: The result of the previous link; for the first link, any initial features.

        Returns:
            The updated features. Their last dimension in memory is the channel dimension of alpha.

        Raises:
            ValueError: If an |alpha| is too small to be inverted, below MIN_ALPHA, about 1.53e-5.
            RuntimeError: If ``features`` is not the result of the previous link; see also the note above.
        """
        return self._run(link, x, features, torch.compiler.is_compiling())

    @property
    def kept_bytes(self) -> int:
        """Bytes stored for the reconstruction, in addition to the result of the last link."""
        return self.code_bytes + sum(value.low.nbytes for value in self.values if value)

    @torch.compiler.disable
    def _run(
        self, link: Sequence[Coupling], x: Tensor, features: Sequence[Tensor], compiled: bool
    ) -> list[Tensor]:
        if x.device.type == 'mps':
            raise RuntimeError(
                'reversible training needs float64, which mps does not have: set save_memory=False'
            )
        features = list(features)
        self.values = self.values or [None] * len(features)
        for value, feature in zip(self.values, features, strict=True):
            if value and not value.is_held_by(feature):
                raise RuntimeError(
                    'a reversible chain must get the result of its previous link unchanged, but it was '
                    'modified or replaced, for example by a forward hook'
                )
        for coupling, plan in zip(link, self._plan_codes([coupling.alpha for coupling in link])):
            if coupling.level in coupling.reads:
                raise ValueError(
                    f'the function of level {coupling.level} must not read level {coupling.level}: '
                    'the coupling could not be inverted'
                )
            sources = [x if source is None else features[source] for source in coupling.reads]
            run = _CouplingRun(self, coupling, plan, Call(coupling.function, x.device, compiled))
            features[coupling.level] = _Couple.apply(
                run, features[coupling.level], coupling.alpha, *sources, *run.call.trainable.values()
            )
        self.num_links += 1
        return features

    def _plan_codes(self, alphas: Sequence[Tensor]) -> list[CodePlan]:
        """Plan the codes of the next link, which has these alphas. The first call plans all announced."""
        if self.alphas and not self.plans:
            self.plans = _plans(self.alphas)
        place = slice(self.num_couplings, self.num_couplings + len(alphas))
        self.num_couplings = place.stop
        announced, given = ([(a.shape, a.dtype) for a in some] for some in (self.alphas[place], alphas))
        return self.plans[place] if announced == given else _plans(alphas)


def _plans(alphas: Sequence[Tensor]) -> list[CodePlan]:
    plans = exact_couplings.plan_codes(_to_cpu(alphas))
    return [plan.to(alpha.device) for alpha, plan in zip(alphas, plans)]


def check_reconstruction() -> None:
    """Raise a RuntimeError if an earlier backward pass on a GPU was not exact. On a CPU, backward does."""
    _to_cpu([])


# Checks of couplings on GPUs that the CPU has not read yet: a factor that is nan if the check failed, the sum
# of the gradient of alpha (of the feature if there is none), and the error message.
_pending_checks: list[tuple[Tensor, Tensor, str]] = []


def _to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors to the CPU as float64. Evaluates the pending checks, which share the transfers."""
    checks = list(_pending_checks)
    parts = [*tensors, *(tensor for factor, total, _ in checks for tensor in (factor, total))]
    parts = [part.detach().flatten() for part in parts]
    values = list(parts)
    for device in {part.device for part in parts}:
        own = [index for index, part in enumerate(parts) if part.device == device]
        moved = torch.cat([parts[index] for index in own]).cpu().double()
        for index, value in zip(own, moved.split([len(parts[index]) for index in own])):
            values[index] = value
    del _pending_checks[: len(checks)]
    check_values = iter(values[len(tensors) :])
    for factor, total, (_, _, message) in zip(check_values, check_values, checks):
        if factor.isnan() and total.isfinite():  # a non-finite sum is an overflow, not our error
            raise RuntimeError(message)
    return [value.view(tensor.shape) for value, tensor in zip(values, tensors)]


class _LevelValue:
    """The value of a level between two couplings: either stored, or reconstructed when needed.

    Args:
        feature: The feature that the chain returns.
        low, checksum, offset: The rest of its :class:`State`; None for x and initial features.
    """

    def __init__(
        self,
        feature: Tensor,
        low: Tensor | None = None,
        checksum: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> None:
        self.checksum, self.offset = checksum, offset
        self.consumer: _CouplingRun | None = None  # the coupling that updates it, and can reconstruct it
        self.put(feature, low)

    def put(self, feature: Tensor, low: Tensor | None) -> None:
        self.saved, self.low = SavedTensor(feature, 'a feature'), low

    def release(self) -> None:
        """Free the memory if the value can be reconstructed."""
        if self.consumer:
            self.saved = self.low = None

    def is_held_by(self, feature: Tensor) -> bool:
        """Return whether ``feature`` is this value, unmodified, or a view of all of it (FSDP makes some)."""
        places = [
            # The stride of a dimension of size 1 is arbitrary.
            (tensor.data_ptr(), tensor.shape, [s for s, n in zip(tensor.stride(), tensor.shape) if n > 1])
            for tensor in (self.saved.tensor, feature)
        ]
        return places[0] == places[1] and feature._version == self.saved.version

    def get(self) -> Tensor:
        """Return the feature, reconstructing it first if necessary."""
        if self.saved is None:
            self.consumer.backward(None)
        return self.saved.get()

    def state(self) -> State:
        return State(self.get(), self.low, self.checksum, self.offset)


class _CouplingRun:
    """One run of a coupling, and what its backward pass needs."""

    def __init__(self, chain: ReversibleChain, coupling: Coupling, plan: CodePlan, call: Call) -> None:
        self.chain: ReversibleChain | None = chain  # until forward has run
        self.coupling, self.plan, self.call, self.link = coupling, plan, call, chain.num_links

    def forward(self, feature: Tensor, sources: Sequence[Tensor], needs_grad: Sequence[bool]) -> Tensor:
        """Run the coupling.

        Args:
            feature: The feature to update.
            sources: Inputs of the function.
            needs_grad: Whether the feature, then each input, needs a gradient.
        """
        chain, self.chain = self.chain, None
        level, alpha = self.coupling.level, self.coupling.alpha.detach()
        self.alpha, self.needs_grad = SavedTensor(alpha, 'an alpha'), needs_grad
        # Use the chain's own tensors: those passed in may be views with other strides. x and initial features
        # are stored.
        values = [None if source is None else chain.values[source] for source in self.coupling.reads]
        self.sources = [value or _LevelValue(source) for value, source in zip(values, sources)]
        residual = self.call.forward([source.get() for source in self.sources], needs_grad[1:])
        before = chain.values[level]
        if before is None:
            self.start, self.before, self.codes = _LevelValue(feature), None, None
            state = exact_couplings.start(residual, feature.detach(), alpha)
            self.checksum = state.checksum  # of the result: backward computes it again
        else:
            self.start, self.before, self.checksum = None, weakref.ref(before), before.checksum
            state, self.codes = exact_couplings.advance(residual, before.state(), alpha, self.plan)
            chain.code_bytes += self.codes.nbytes
            before.consumer = self
            before.release()
        self.result = chain.values[level] = _LevelValue(*state)
        return state.feature

    def backward(self, grad: Tensor | None) -> list[Tensor | None]:
        """Invert the coupling and, unless ``grad`` (the gradient of the result) is None, differentiate it.

        Returns:
            Gradients of the feature, alpha, the function's inputs and its trainable parameters.
        """
        feature, alpha = self.result.get(), self.alpha.get()
        residual, leaves = self.call.recompute([source.get() for source in self.sources])
        leaf_grads = _gradients(residual, leaves, grad)
        residual, feature_grad, alpha_grad = residual.detach(), None, None
        if self.start:
            start = self.start.get()
            checksum = exact_couplings.start(residual, start, alpha, self.result.offset).checksum
            if grad is not None:
                alpha_grad = (grad * start).sum_to_size(alpha.shape)
                feature_grad = (grad * alpha).sum_to_size(start.shape) if self.needs_grad[0] else None
        else:
            before, feature_grad, alpha_grad = exact_couplings.retreat(
                residual, self.result.state(), self.codes, alpha, grad
            )
            checksum = before.checksum
            if self.before():  # None if no earlier coupling needs the value
                self.before().put(before.feature, before.low)
        self.result.release()
        return self._verify([feature_grad, alpha_grad, *leaf_grads], checksum, feature)

    def _verify(self, grads: list[Tensor | None], checksum: Tensor, feature: Tensor) -> list[Tensor | None]:
        """Compare the checksums. If they differ, raise an error on a CPU; on a GPU set the gradients to nan.

        Args:
            grads: What :meth:`backward` returns.
            checksum: Checksum of the reconstruction.
            feature: The result of the coupling.
        """
        failed = checksum != self.checksum
        if _is_on_cpu(failed):
            if failed and feature.isfinite().all():  # a non-finite feature is an overflow, not our error
                raise RuntimeError(self._message())
            return grads
        factor = torch.where(failed, torch.nan, 1.0)
        total = (feature if grads[1] is None else grads[1]).sum(dtype=factor.dtype)
        _pending_checks.append((factor, total, self._message()))
        # In place, without a second copy of the gradients; this needs own memory for every element.
        grads = [grad.clone() if grad is not None and 0 in grad.stride() else grad for grad in grads]
        present = [grad for grad in grads if grad is not None]
        if present:
            torch._foreach_mul_(present, factor)
        return grads

    def _message(self) -> str:
        place = f'link {self.link}, level {self.coupling.level}'
        message = f'the reconstruction of a reversible chain is not exact in {place}: '
        changed = self.call.changed_settings()
        if changed:
            return message + f'settings were changed between forward and backward: {", ".join(changed)}'
        return message + (
            f'either {type(self.call.function).__name__} gave another result when it was called again (it '
            "must draw random numbers only from torch's default generators, and keep state only in buffers), "
            'or the level has grown to about 2^12 times (in float64, 2^8) its largest value in the first link'
        )


def _is_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == 'cpu'


def _gradients(residual: Tensor, leaves: Sequence[Tensor], grad: Tensor | None) -> list[Tensor | None]:
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if grad is None or not residual.requires_grad:
        return [None] * len(leaves)
    grads = iter(torch.autograd.grad(residual, wanted, grad.to(residual.dtype), allow_unused=True))
    return [next(grads) if leaf.requires_grad else None for leaf in leaves]


class _Couple(torch.autograd.Function):
    """The autograd node of a coupling. Inputs: feature, alpha, the function's inputs and parameters."""

    @staticmethod
    def forward(ctx: Any, run: _CouplingRun, feature: Tensor, alpha: Tensor, *tensors: Tensor) -> Tensor:
        ctx.run, num_sources = run, len(run.coupling.reads)
        _, needs_feature, _, *needs = ctx.needs_input_grad
        return run.forward(feature, tensors[:num_sources], [needs_feature, *needs[:num_sources]])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # `once_differentiable` raises only if someone differentiates through the returned gradient. If the
        # loss is linear, the incoming gradient has no graph, so a second derivative would silently lack this
        # node's part.
        if torch.is_grad_enabled():
            raise RuntimeError('a reversible chain cannot be differentiated twice: remove create_graph=True')
        return None, *ctx.run.backward(grad)
