"""Training a chain of reversible couplings without storing what they compute on the way.

The chain consists of links (RevCol's columns), each of some couplings (its levels)::

    c[i][l] = F[i][l](inputs) + alpha[i][l] * c[i-1][l]

Backward walks it from its end. It runs every ``F`` once more, with a graph, and uses the result twice: for
the gradients, and to reconstruct ``c[i-1][l] = (c[i][l] - F[i][l](inputs)) / alpha[i][l]``.

The reconstruction is exact to the last bit, at any depth. That matters, for an error would be multiplied by
``1 / alpha`` and by what ``F`` makes of it in every coupling. The state of the chain is a float64 *stream* on
a fixed grid, of which ``F`` sees the value rounded to its own type; the bits that a coupling loses, two for
each element at alpha 0.5, are kept (see :mod:`revcol_mm.ops.lost_bits`).
"""

from dataclasses import dataclass
from typing import Any, Sequence

import torch
from torch import Tensor

from .chain import Chain, add_shortcut
from .coupling import Coupling
from .lost_bits import CodePlan, Codes, grid_limit, low_bits, plan_codes, restore_words_
from .rng_replay import CallState, untried_kernels


class ReversibleChain(Chain):
    """One forward pass through a chain of links, which remembers what its backward pass needs.

    Args:
        num_links: How many links will run before backward.
        errors: Takes note of how exact the reconstruction is, at the price of a few passes over the first
            link's features: for each of its levels that backward reaches, a scalar tensor is appended, the
            largest error of the reconstructed feature relative to the largest feature. An error anywhere in
            the chain gets here. 0 is what to expect.

    Note:
        Random numbers and autocast are in the second run of each ``F`` as in the first. Parameters get their
        gradients through autograd, as they do in a plain chain: DDP's hooks and gradient accumulation work,
        without ``find_unused_parameters``, and so does FSDP2 where it shards whole links or more. Errors in
        backward, each a RuntimeError: differentiating twice; results or parameters that were changed in
        place since; an ``F`` that needs gradients of tensors other than its inputs and parameters, as under
        FSDP1; a level that has grown beyond the grid, to 2^15 times its largest value in the first link (2^7
        in float64). Of one thing only ``errors`` tells: ``F`` must repeat itself, the same bits for the same
        inputs.
    """

    def __init__(self, num_links: int, errors: list[Tensor] | None = None) -> None:
        super().__init__()
        self.num_links = num_links
        self.errors = errors
        self.num_levels = 0  # the first link tells
        self.plans: list[CodePlan] = []  # of the link at hand: they follow from its alphas
        self.done: list[_Done] = []
        self.outputs: list[Tensor] = []
        self.position = -1  # backward's: stream and features are those after this coupling

    @torch.compiler.disable
    def __call__(self, couplings: Sequence[Coupling], x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Run the next link; does what :func:`revcol_mm.ops.couple` does.

        Args:
            couplings: One for each level, level 0 first; each ``function`` is a module.
            x: Constant input of the chain.
            features: The result of the link before; to the first link, what the chain starts from.

        Returns:
            The updated features.

        Raises:
            ValueError: If an alpha is too small to be undone, below 1.6e-5.
            RuntimeError: If all ``num_links`` have run, ``features`` are not the result of the link before,
                or this has outgrown the grid; in backward, see the note above.
        """
        if self.outputs:
            raise RuntimeError(f'the {self.num_links} links of this reversible chain have run already')
        features = list(features)
        if self.done:
            if not all(self._is_own(level, feature) for level, feature in enumerate(features)):
                raise RuntimeError(
                    'a reversible chain takes the result of its last link as it is; something, such as '
                    'a forward hook, has changed it or put another in its place'
                )
            self.plans = plan_codes([coupling.alpha for coupling in couplings])
            self._refuse_growth(features)
        else:
            self.num_levels = len(features)
            self._start([feature.detach() for feature in features])
        for coupling in couplings:
            params = [param for param in coupling.function.parameters() if param.requires_grad]
            features[coupling.level] = _Couple.apply(
                self,
                coupling,
                x.detach(),
                features[coupling.level],
                coupling.alpha,
                *coupling.sources(x, features),
                *params,
            )
        return features

    def _refuse_growth(self, features: Sequence[Tensor]) -> None:
        """Raise an error if a link's result does not fit the grid, so that low bits are missing."""
        peaks = torch.stack([feature.detach().abs().amax() for feature in features]).double()
        limits = grid_limit(torch.stack(self.offsets))
        for level, (peak, limit) in enumerate(torch.stack([peaks, limits], dim=1).tolist()):
            if limit < peak < torch.inf:  # what is not finite makes such gradients, as in a plain chain
                raise RuntimeError(
                    f'level {level} of a reversible chain has grown to {peak:.1e}; no more than {limit:.1e} '
                    'can be undone, 2^15 times its largest value in the first link (2^7 in float64)'
                )

    @property
    def kept_bytes(self) -> int:
        """Size of what is kept for the reconstruction, beside the last link's result."""
        return sum(done.kept.nbytes for done in self.done)

    def couple(self, coupling: Coupling, x: Tensor, feature: Tensor) -> Tensor:
        """Compute a coupling's result without a graph, and note what its backward pass needs.

        ``F`` sees the chain's own features, whose strides are those that backward will reconstruct: with
        others, as those of a view that FSDP makes, it may round differently.
        """
        index, level = len(self.done), coupling.level
        state = CallState(x.device, self.done[-1].state if self.done else None)
        with untried_kernels():
            residual = coupling.residual(x, self.features)
        dtype = torch.result_type(residual, coupling.alpha)
        is_first, is_last = index < self.num_levels, index >= (self.num_links - 1) * self.num_levels
        if not is_first:
            before = self.done[index - self.num_levels]
            before.kept = Codes(before.kept, self.plans[level])
        stream = self._advance(coupling, residual, dtype)
        words = low_bits(stream, torch.int32 if is_last else torch.int16)
        stream -= self.offsets[level]
        result = stream.to(dtype, copy=True)
        self._take(level, result.detach())
        self.done.append(_Done(coupling, x, feature.detach() if is_first else None, state, words))
        if is_last:  # from here on its result and the low words are enough
            self.outputs.append(self.features[level])
            self.stream[level] = None
        return result

    def differentiate(
        self, index: int, grad: Tensor, x: Tensor, params: Sequence[Tensor], needs_grad: Sequence[bool]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Undo a coupling, and differentiate it on the way.

        Args:
            index: Number of the coupling in the chain.
            grad: Gradient of its result.
            x: Constant input of the chain.
            params: Trainable parameters of its function.
            needs_grad: Of each source and of each parameter.

        Returns:
            The reconstructed feature, and the gradients of the sources and of the parameters.
        """
        self._go_to(index)
        coupling = self.done[index].coupling
        sources = [source.detach() for source in coupling.sources(x, self.features)]
        for source, needs in zip(sources, needs_grad):
            source.requires_grad_(needs)
        with torch.enable_grad(), self.done[index].state.replay():
            residual = coupling.function(*sources)
        inputs = [*sources, *params]
        _refuse_other_leaves(residual, inputs)
        wanted = [tensor for tensor, needs in zip(inputs, needs_grad) if needs]
        if wanted:
            grads = iter(torch.autograd.grad(residual, wanted, grad.to(residual.dtype), allow_unused=True))
        feature = self._undo(index, residual.detach())
        return feature, [next(grads) if needs else None for needs in needs_grad]

    def _go_to(self, index: int) -> None:
        """Reconstruct the state after a coupling, unless it is the one at hand."""
        if self.position < index:
            if len(self.outputs) < self.num_levels:
                raise RuntimeError(
                    f'backward through a reversible chain of {self.num_links} links, of which no more than '
                    f'{len(self.done) // self.num_levels} have run'
                )
            if any(output._version != version for output, version in zip(self.outputs, self.versions)):
                raise RuntimeError('the result of a reversible chain was changed in place before backward')
            self._refuse_growth(self.outputs)
            self.position = len(self.done) - 1
            self.features = list(self.outputs)
            self.stream = [output.to(torch.float64, copy=True) for output in self.outputs]
            for level, stream in enumerate(self.stream):
                stream += self.offsets[level]
                restore_words_(stream, self.done[level - self.num_levels].kept, self.offsets[level])
                stream -= self.offsets[level]
        while self.position > index:
            self._undo(self.position)

    def _undo(self, index: int, residual: Tensor | None = None) -> Tensor:
        """Go back to the state before a coupling, and return the feature that it was given."""
        done = self.done[index]
        coupling, level = done.coupling, done.coupling.level
        stream = self.stream[level]
        if residual is None and (done.start is None or self.errors is not None):
            with done.state.replay():
                residual = coupling.residual(done.x, self.features)
        if done.start is not None:
            feature = done.start
            if self.errors is not None:
                expected = add_shortcut(residual, coupling.alpha, feature)
                expected += self.offsets[level]
                expected -= self.offsets[level]
                self.errors.append((stream - expected).abs_().amax() / expected.abs().amax())
        else:
            stream.sub_(residual)
            torch.addcdiv(self.offsets[level], stream, coupling.alpha.double(), out=stream)
            self.done[index - self.num_levels].kept.restore_(stream, self.offsets[level])
            stream -= self.offsets[level]
            feature = stream.to(self.features[level].dtype, copy=True)
        self.features[level] = feature
        self.position = index - 1
        if index == 0:
            self.features, self.stream = [], []
        return feature


def _refuse_other_leaves(residual: Tensor, inputs: Sequence[Tensor]) -> None:
    """Raise an error if ``residual`` depends on a leaf whose gradient would get lost."""
    known = {id(tensor) for tensor in inputs}
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


@dataclass
class _Done:
    """What backward needs of one coupling that has run."""

    coupling: Coupling
    x: Tensor
    start: Tensor | None  # in the first link: the feature that it was given
    state: CallState
    kept: Codes | Tensor  # the lowest bits of the result; once the next link has run, their codes


class _Couple(torch.autograd.Function):
    """A coupling in autograd's eyes: feature, alpha, sources and parameters in, feature out.

    Autograd runs the last of these backward first, so the chain is walked once, from its end.
    """

    @staticmethod
    def forward(
        ctx: Any,
        chain: ReversibleChain,
        coupling: Coupling,
        x: Tensor,
        feature: Tensor,
        alpha: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.chain, ctx.index = chain, len(chain.done)
        num_sources = len(coupling.reads)
        # Parameters must stay as they are until backward, or autograd says so.
        ctx.save_for_backward(x, alpha, *tensors[num_sources:])
        ctx.feature_shape = feature.shape
        return chain.couple(coupling, x, feature)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError('a reversible chain cannot be differentiated twice (create_graph=True)')
        x, alpha, *params = ctx.saved_tensors
        needs_feature, needs_alpha, *needs_grad = ctx.needs_input_grad[3:]
        feature, grads = ctx.chain.differentiate(ctx.index, grad, x, params, needs_grad)
        grad_feature = (grad * alpha).sum_to_size(ctx.feature_shape) if needs_feature else None
        grad_alpha = (grad * feature).sum_to_size(alpha.shape) if needs_alpha else None
        return None, None, None, grad_feature, grad_alpha, *grads
