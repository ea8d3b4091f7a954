"""Training a chain of links without storing what they compute on the way.

Backward runs every ``F`` once more, with a graph, and uses the result twice: for the gradients, and to
reconstruct ``c[i-1][l] = (c[i][l] - F[i][l](...)) / alpha[i][l]``. The reconstruction is exact to the last
bit (see :mod:`.exact_sums`), and a checksum of every ``c[i-1][l]`` certifies it: an error would be multiplied
by ``1 / alpha``, and by what ``F`` makes of it, in every coupling.
"""

import weakref
from typing import Any, Sequence

import torch
from torch import Tensor

from . import exact_sums
from .call import Call, Kept
from .coupling import Coupling
from .exact_sums import Plan, State


class ReversibleChain:
    """One forward pass through a chain of links, of which backward reconstructs what it needs.

    Args:
        links: All links that will run, whose alphas are then read at once. Without them every link reads its
            own, for which the host waits until a GPU has come so far.

    Note:
        Each coupling is one node of autograd's graph, with features, alpha and its function's parameters for
        inputs: hooks, DDP and gradient accumulation work as in a plain chain, and so does FSDP2 where it
        shards whole links or more. In its second run an ``F`` finds the random numbers, autocast, mode and
        buffers of the first. Errors, each a RuntimeError: an ``F`` that needs gradients of other tensors than
        its inputs and parameters, as under FSDP1; differentiating twice; a tensor that backward needs was
        changed in place; and a reconstruction that is not exact, because an ``F`` has not repeated itself or
        a level has grown to 2^12 times its largest value in the first link. So that nothing waits for a GPU,
        the last makes gradients nan there, and the error is raised by the next forward pass or by
        :func:`check_reconstruction`.
    """

    def __init__(self, links: Sequence[Sequence[Coupling]] = ()) -> None:
        self.alphas = [coupling.alpha for link in links for coupling in link]
        self.plans: dict[int, Plan] = {}  # by the id of alphas
        self.values: list[_Value | None] = []  # of each level; None: what the chain starts from
        self.offsets: list[Tensor | None] = []
        self.num_links = self.code_bytes = 0

    def __call__(self, link: Sequence[Coupling], x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Run the next link; does what :func:`couple` does.

        Args:
            link: The couplings, in the order in which they run.
            x: Constant input of the chain.
            features: The result of the link before; to the first link, what the chain starts from.

        Returns:
            The updated features. The last dimension in memory is the one along which alphas differ.

        Raises:
            ValueError: If an alpha is too small to be undone, below 1.6e-5.
            RuntimeError: If ``features`` are not the result of the link before; see also the note above.
        """
        return self._run(link, x, features, torch.compiler.is_compiling())

    @property
    def kept_bytes(self) -> int:
        """Size of what is kept for the reconstruction, beside the last link's result."""
        return self.code_bytes + sum(value.low.nbytes for value in self.values if value)

    @torch.compiler.disable
    def _run(
        self, link: Sequence[Coupling], x: Tensor, features: Sequence[Tensor], compiled: bool
    ) -> list[Tensor]:
        if x.device.type == 'mps':
            raise RuntimeError('reversible training needs float64, which mps lacks: set save_memory=False')
        features = list(features)
        if not self.values:
            self.values, self.offsets = [None] * len(features), [None] * len(features)
        for value, feature in zip(self.values, features, strict=True):
            if value and not value.is_held_by(feature):
                raise RuntimeError(
                    'a reversible chain takes the result of its last link as it is; something, such as '
                    'a forward hook, has changed it or put another in its place'
                )
        self._plan([coupling.alpha for coupling in link])
        for coupling in link:
            if coupling.level in coupling.reads:
                raise ValueError(f'the function of level {coupling.level} reads it, so it cannot be undone')
            sources = [x if source is None else features[source] for source in coupling.reads]
            run = _Run(self, coupling, Call(coupling.function, x.device, compiled))
            features[coupling.level] = _Couple.apply(
                run, features[coupling.level], coupling.alpha, *sources, *run.call.trainable.values()
            )
        self.num_links += 1
        return features

    def _plan(self, alphas: Sequence[Tensor]) -> None:
        """Plan the codes of these alphas and, if they are among those of the whole chain, of all."""
        if all(id(alpha) in self.plans for alpha in alphas):
            return
        if not self.plans and {id(alpha) for alpha in alphas} <= {id(alpha) for alpha in self.alphas}:
            alphas = self.alphas
        self.alphas = [*self.alphas, *alphas]  # whose ids are taken as long as they live
        for alpha, plan in zip(alphas, exact_sums.plan_codes(_to_host(alphas))):
            self.plans[id(alpha)] = plan.to(alpha.device)


def check_reconstruction() -> None:
    """Raise a RuntimeError if a backward pass on a GPU was not exact. (On a CPU backward itself does.)"""
    _to_host([])


# Of couplings that backward has undone on GPUs: nan if it failed, the sum of alpha's gradients, the message.
_unread: list[tuple[Tensor, Tensor, str]] = []


def _to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors to the host, as float64, and in the same transfer what is unread."""
    reports = list(_unread)
    del _unread[: len(reports)]
    parts = [*tensors, *(tensor for poison, total, _ in reports for tensor in (poison, total))]
    parts = [part.detach().flatten() for part in parts]
    values = torch.cat(parts).cpu().double().split([len(part) for part in parts]) if parts else []
    checks = iter(values[len(tensors) :])
    for poison, total, (_, _, message) in zip(checks, checks, reports):
        if poison.isnan() and total.isfinite():  # a gradient that is not finite shows itself
            raise RuntimeError(message)
    return [value.view(tensor.shape) for value, tensor in zip(values, tensors)]


class _Value:
    """A level between two couplings: its exact state, or how to get it back.

    Args:
        feature: As the chain returns it.
        low: The rest of the state, see :class:`State`; None: it is what the chain starts from, any value.
        checksum: Of the state.
    """

    def __init__(self, feature: Tensor, low: Tensor | None = None, checksum: Tensor | None = None) -> None:
        self.checksum = checksum
        self.consumer: _Run | None = None  # the coupling that goes on from it, and can reconstruct it
        self.put(feature, low)

    def put(self, feature: Tensor, low: Tensor | None) -> None:
        self.kept, self.low = Kept(feature, 'a feature'), low

    def release(self) -> None:
        """Let go of what can be reconstructed."""
        if self.consumer:
            self.kept = self.low = None

    def is_held_by(self, feature: Tensor) -> bool:
        """Whether a feature is this one, unchanged, or at least its memory, as FSDP's views."""
        own = self.kept.tensor
        return feature.data_ptr() == own.data_ptr() and feature._version == self.kept.version

    def get(self) -> Tensor:
        """The feature, reconstructed if need be."""
        if self.kept is None:
            self.consumer.backward(None)
        return self.kept.get()


class _Run:
    """One run of a coupling, and what its backward pass needs."""

    def __init__(self, chain: ReversibleChain, coupling: Coupling, call: Call) -> None:
        self.chain: ReversibleChain | None = chain  # until it has run
        self.coupling, self.call, self.link = coupling, call, chain.num_links

    def forward(self, feature: Tensor, sources: Sequence[Tensor], needs_grad: Sequence[bool]) -> Tensor:
        """Run the coupling on a feature and on the inputs of its function, which may need gradients."""
        chain, self.chain = self.chain, None
        level, alpha = self.coupling.level, self.coupling.alpha.detach()
        self.alpha, self.needs_grad = Kept(alpha, 'an alpha'), needs_grad
        # The chain's own, not views with other strides; what it starts from is kept here.
        values = [None if source is None else chain.values[source] for source in self.coupling.reads]
        self.sources = [value or _Value(source) for value, source in zip(values, sources)]
        residual = self.call.first([source.get() for source in self.sources], needs_grad[1:])
        before = chain.values[level]
        if before is None:
            self.start, self.before, self.coupled = _Value(feature), None, None
            start = feature.detach().expand(residual.shape)
            state, chain.offsets[level] = exact_sums.start(residual, start, alpha, chain.offsets[level])
            self.checksum = state.checksum  # of the state that backward can certify
        else:
            self.start, self.before, self.checksum = None, weakref.ref(before), before.checksum
            state = State(before.get(), before.low, before.checksum)
            plan = chain.plans[id(self.coupling.alpha)]
            state, self.coupled = exact_sums.advance(residual, state, alpha, chain.offsets[level], plan)
            chain.code_bytes += self.coupled.nbytes
            before.consumer = self
            before.release()
        self.offset = chain.offsets[level]
        self.result = chain.values[level] = _Value(*state)
        return state.feature

    def backward(self, grad: Tensor | None) -> list[Tensor | None]:
        """Undo the coupling and, if there is a gradient of its result, differentiate it on the way.

        Returns:
            Gradients of the feature, alpha, the function's inputs and its trainable parameters.
        """
        feature, alpha = self.result.get(), self.alpha.get()
        residual, leaves = self.call.again([source.get() for source in self.sources])
        leaf_grads = _gradients(residual, leaves, grad)
        residual, feature_grad, alpha_grad = residual.detach(), None, None
        if self.start:
            start = self.start.get()
            expanded = start.expand(residual.shape)
            checksum = exact_sums.start(residual, expanded, alpha, self.offset)[0].checksum
            if grad is not None:
                alpha_grad = (grad * expanded).sum_to_size(alpha.shape)
                feature_grad = (grad * alpha).sum_to_size(start.shape) if self.needs_grad[0] else None
        else:
            state = State(feature, self.result.low, self.checksum)
            (*state, checksum), feature_grad, alpha_grad = exact_sums.retreat(
                residual, state, self.coupled, alpha, self.offset, grad
            )
            if self.before():  # a coupling before will want it
                self.before().put(*state)
        self.result.release()
        num_sources = len(self.sources)
        sources_grads, params_grads = leaf_grads[:num_sources], leaf_grads[num_sources:]
        alpha_grad, *params_grads = self._certified([alpha_grad, *params_grads], checksum, feature)
        return [feature_grad, alpha_grad, *sources_grads, *params_grads]

    def _certified(
        self, grads: Sequence[Tensor | None], checksum: Tensor, feature: Tensor
    ) -> Sequence[Tensor | None]:
        """Gradients of alpha and parameters; nan where a checksum is not what it was, an error on a CPU."""
        failed = checksum != self.checksum
        if _is_read_at_once(failed):
            if failed and feature.isfinite().all():  # others show it
                raise RuntimeError(self._message())
            return grads
        poison = torch.where(failed, torch.nan, 1.0)
        total = torch.zeros_like(poison) if grads[0] is None else grads[0].sum(dtype=poison.dtype)
        _unread.append((poison, total, self._message()))
        present = [grad for grad in grads if grad is not None]
        poisoned = iter(torch._foreach_mul(present, poison) if present else ())  # one launch
        return [None if grad is None else next(poisoned) for grad in grads]

    def _message(self) -> str:
        message = (
            'the reconstruction of a reversible chain is not exact in '
            f'link {self.link}, level {self.coupling.level}: '
        )
        changed = self.call.changed_settings()
        if changed:
            return message + f'since it ran first, other settings were made, {", ".join(changed)}'
        return message + (
            f'either {type(self.call.function).__name__} has not computed the same bits again (it may draw '
            "random numbers from torch's default generators only, and keep no state but in buffers), or the "
            'level has grown to 2^12 times its largest value in the first link'
        )


def _is_read_at_once(tensor: Tensor) -> bool:
    return tensor.device.type == 'cpu'


def _gradients(residual: Tensor, leaves: Sequence[Tensor], grad: Tensor | None) -> list[Tensor | None]:
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if grad is None or not residual.requires_grad:
        return [None] * len(leaves)
    grads = iter(torch.autograd.grad(residual, wanted, grad.to(residual.dtype), allow_unused=True))
    return [next(grads) if leaf.requires_grad else None for leaf in leaves]


class _Couple(torch.autograd.Function):
    """A coupling in autograd's eyes: feature, alpha, its function's inputs and parameters in, feature out."""

    @staticmethod
    def forward(ctx: Any, run: _Run, feature: Tensor, alpha: Tensor, *tensors: Tensor) -> Tensor:
        ctx.run, num_sources = run, len(run.coupling.reads)
        _, needs_feature, _, *needs = ctx.needs_input_grad
        return run.forward(feature, tensors[:num_sources], [needs_feature, *needs[:num_sources]])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # torch's once_differentiable lets losses pass that are linear in features
        if torch.is_grad_enabled():
            raise RuntimeError('a reversible chain cannot be differentiated twice (create_graph=True)')
        return None, *ctx.run.backward(grad)
