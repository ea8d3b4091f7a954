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

from typing import Any, Sequence

import torch
from torch import Tensor

from .coupling import Coupling
from .lost_bits import Codes, grid_offset, plan_codes
from .rng_replay import CallState


class ReversibleChain:
    """One forward pass through a chain of links, which remembers what its backward pass needs.

    Args:
        alphas: For every link, the alphas of its levels. They decide how many bits are kept.

    Attributes:
        kept_bytes: Size of what is kept beside the last link's result.

    Note:
        Random numbers and autocast are in the second run of each ``F`` as in the first. Parameters get their
        gradients through autograd, as they do in a plain chain: DDP's hooks and gradient accumulation work,
        without ``find_unused_parameters``. ``F`` must repeat itself, the same bits for the same inputs.
        Differentiating twice is an error.
    """

    def __init__(self, alphas: Sequence[Sequence[Tensor]]) -> None:
        self.num_links = len(alphas)
        self.plans = [[plan_codes(alpha) for alpha in link] for link in alphas[1:]]
        self.links: list[_Link] = []
        self.kept_bytes = 0
        self.offsets: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.versions: list[int] = []
        self.last_words: list[Tensor] = []
        self.last_state: CallState | None = None
        # The link whose result is held now, as the stream and as rounded to the type of the features.
        self.position = -1
        self.stream: list[Tensor] = []
        self.features: list[Tensor] = []

    @torch.compiler.disable
    def __call__(self, couplings: Sequence[Coupling], x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Run the next link; does what :func:`revcol_mm.ops.couple` does.

        Args:
            couplings: One for each level, level 0 first; each ``function`` is a module.
            x: Constant input of the chain.
            features: The result of the link before; to the first link, what the chain starts from.

        Returns:
            The updated features.
        """
        params = (p for coupling in couplings for p in coupling.function.parameters() if p.requires_grad)
        alphas = [coupling.alpha for coupling in couplings]
        return list(_RunLink.apply(self, couplings, x, *features, *alphas, *dict.fromkeys(params)))

    def run_link(self, couplings: Sequence[Coupling], x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Compute a link's result without a graph, and note what its backward pass needs."""
        index = len(self.links)
        first, last = index == 0, index == self.num_links - 1
        link = _Link(couplings, x, list(features) if first else [])
        self.links.append(link)
        if first:
            self.features, self.stream = list(features), [_stream(feature) for feature in features]
        for level, coupling in enumerate(couplings):
            self.last_state = CallState(x.device, self.last_state)
            link.states.append(self.last_state)
            residual = coupling.residual(x, self.features)
            alpha = coupling.alpha.double()
            dtype = torch.result_type(residual, coupling.alpha)
            if first:
                stream = torch.addcmul(residual.double(), alpha, self.stream[level])
                self.offsets.append(grid_offset(stream, dtype))
                self.stream[level] = stream
            else:
                stream = self.stream[level].mul_(alpha).add_(residual)
            stream += self.offsets[level]
            if last:
                self.last_words.append(stream.view(torch.int64).to(torch.int32))  # without the high words
            else:
                link.codes.append(Codes(stream, self.plans[index][level]))
            stream -= self.offsets[level]
            self.features[level] = stream.to(dtype, copy=True)
        kept = self.last_words if last else link.codes
        self.kept_bytes += sum(part.nbytes for part in kept)
        if not last:
            return list(self.features)
        outputs, self.features, self.stream = self.features, [], []
        self.outputs = [output.detach() for output in outputs]
        self.versions = [output._version for output in outputs]
        return outputs

    def differentiate_link(
        self, index: int, grads: Sequence[Tensor | None], x_needs_grad: bool
    ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None], dict[Tensor, Tensor]]:
        """Gradients of a link, given those of its result.

        Returns:
            The gradients of x, of the features that the link was given, of its alphas and of its functions'
            parameters.
        """
        self._go_to(index)
        couplings = self.links[index].couplings
        grads, grad_x = list(grads), None
        grad_previous, grad_alphas, grad_params = [None] * len(grads), [None] * len(grads), {}
        for level in reversed(range(len(couplings))):
            coupling, grad = couplings[level], grads[level]
            if grad is None:
                self._step_back(index, level)
                continue
            sources = [
                self.links[index].x.detach().requires_grad_(x_needs_grad)
                if read is None
                else self.features[read].detach().requires_grad_()
                for read in coupling.reads
            ]
            with torch.enable_grad():
                residual = self._rerun(index, level, sources)
            params = [param for param in coupling.function.parameters() if param.requires_grad]
            wanted = [source for source in sources if source.requires_grad] + params
            if residual.requires_grad and wanted:
                found = torch.autograd.grad(residual, wanted, grad.to(residual.dtype), allow_unused=True)
                found = iter(found)
                for read, source in zip(coupling.reads, sources):
                    if not source.requires_grad:
                        continue
                    if read is None:
                        grad_x = _add(grad_x, next(found))
                    elif read < level:
                        grads[read] = _add(grads[read], next(found))
                    else:
                        grad_previous[read] = _add(grad_previous[read], next(found))
                for param, grad_param in zip(params, found):
                    grad_params[param] = _add(grad_params.get(param), grad_param)
            self._step_back(index, level, residual.detach())
            grad_alphas[level] = (grad * self.features[level]).sum_to_size(coupling.alpha.shape)
            grad_previous[level] = _add(grad_previous[level], grad * coupling.alpha)
        self.position = index - 1
        if index == 0:
            self.features, self.stream = [], []
        return grad_x, grad_previous, grad_alphas, grad_params

    def _go_to(self, index: int) -> None:
        """Reconstruct the result of a link, unless it is the one at hand."""
        if not self.features or self.position < index:
            if len(self.links) < self.num_links:
                raise RuntimeError(
                    f'backward through a reversible chain of {self.num_links} links of which only '
                    f'{len(self.links)} have run'
                )
            if any(output._version != version for output, version in zip(self.outputs, self.versions)):
                raise RuntimeError('the result of a reversible chain was changed in place before backward')
            self.position = self.num_links - 1
            self.features, self.stream = list(self.outputs), [_stream(output) for output in self.outputs]
            for stream, offset, words in zip(self.stream, self.offsets, self.last_words):
                stream += offset
                counts = stream.view(torch.int64)
                counts += words - counts.to(torch.int32)  # wraps around: the nearest with these low words
                stream -= offset
        while self.position > index:
            for level in reversed(range(len(self.features))):
                self._step_back(self.position, level)
            self.position -= 1

    def _rerun(self, index: int, level: int, sources: Sequence[Tensor]) -> Tensor:
        link = self.links[index]
        with link.states[level].replay():
            return link.couplings[level].function(*sources)

    def _step_back(self, index: int, level: int, residual: Tensor | None = None) -> None:
        """Undo one coupling, in place."""
        link = self.links[index]
        if index == 0:
            self.features[level] = link.start[level]
            return
        coupling, stream = link.couplings[level], self.stream[level]
        if residual is None:
            sources = [link.x if read is None else self.features[read] for read in coupling.reads]
            residual = self._rerun(index, level, sources)
        stream.sub_(residual).div_(coupling.alpha.double())
        stream += self.offsets[level]
        self.links[index - 1].codes[level].restore_(stream)
        stream -= self.offsets[level]
        self.features[level] = stream.to(self.features[level].dtype, copy=True)


class _Link:
    """What backward needs of one link."""

    def __init__(self, couplings: Sequence[Coupling], x: Tensor, start: list[Tensor]) -> None:
        self.couplings = couplings
        self.x = x.detach()
        self.start = [feature.detach() for feature in start]  # what the first link was given
        self.states: list[CallState] = []
        self.codes: list[Codes] = []


def _stream(feature: Tensor) -> Tensor:
    """A float64 copy, to be changed in place."""
    return feature.to(torch.float64, copy=True)


def _add(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    if total is None or term is None:
        return term if total is None else total
    return total + term


class _RunLink(torch.autograd.Function):
    """A link in autograd's eyes: x, features, alphas and parameters in, features out."""

    @staticmethod
    def forward(
        ctx: Any, chain: ReversibleChain, couplings: Sequence[Coupling], x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.chain, ctx.index, ctx.num_levels = chain, len(chain.links), len(couplings)
        ctx.save_for_backward(x, *tensors[len(couplings) :])  # unchanged until backward, or autograd says so
        ctx.set_materialize_grads(False)
        return tuple(chain.run_link(couplings, x, tensors[: len(couplings)]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError('a reversible chain cannot be differentiated twice (create_graph=True)')
        _, *tensors = ctx.saved_tensors
        start = ctx.chain.links[0].start
        _, _, x_needs_grad, *needs_grad = ctx.needs_input_grad
        grad_x, grad_features, grad_alphas, grad_params = ctx.chain.differentiate_link(
            ctx.index, grads, x_needs_grad
        )
        if ctx.index == 0:
            grad_features = [
                grad.sum_to_size(feature.shape) if needed and grad is not None else None
                for grad, feature, needed in zip(grad_features, start, needs_grad)
            ]
        params = tensors[ctx.num_levels :]
        return None, None, grad_x, *grad_features, *grad_alphas, *(grad_params.get(p) for p in params)
