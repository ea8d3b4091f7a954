"""Comparing the gradients of two ways to compute the same model."""

from typing import Callable, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from revcol_mm.ops import Coupling, ReversibleChain, check_reconstruction

from .storing_chain import StoringChain


def gradients(model: nn.Module, image: Tensor, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """Gradients of ``sum_i mean(output_i * weights_i)``.

    Args:
        model: Returns a sequence of tensors.
        image: Its input.
        weights: For every output a tensor of its shape.

    Returns:
        The gradient of the input, under 'input', and of every parameter, under its name; None where there is
        none. Random numbers are drawn from seed 0.
    """
    image = image.detach().clone().requires_grad_()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    sum((output * weight).mean() for output, weight in zip(model(image), weights, strict=True)).backward()
    return {'input': image.grad, **{name: param.grad for name, param in model.named_parameters()}}


def worst_errors(
    actual: dict[str, Tensor | None], expected: dict[str, Tensor | None]
) -> list[tuple[float, str]]:
    """Relative errors of gradients, the largest first.

    Returns:
        For every gradient ``max |actual - expected| / max |expected|`` (the difference itself where the
        expected gradient is zero) and its name. Infinite where one of the two is missing. In float64 the
        divisor is at least 1e-8 of the largest gradient: below, a gradient may be zero in truth, as that of a
        bias in front of a BatchNorm, and its value rounding.
    """
    errors = []
    double = [grad for grad in expected.values() if grad is not None and grad.dtype == torch.float64]
    least = 1e-8 * max((grad.abs().max().item() for grad in double), default=0.0)
    for name, reference in expected.items():
        if (reference is None) != (actual[name] is None):
            errors.append((float('inf'), name))
        elif reference is not None:
            difference = (actual[name].double() - reference.double()).abs().max().item()
            errors.append((difference / (max(reference.abs().max().item(), least) or 1.0), name))
    return sorted(errors, reverse=True)


class ReversibleReport(NamedTuple):
    """How a reversible chain compares with the same one that stores everything.

    Args:
        output_error: Largest difference of an output, relative to its largest value.
        gradient_error: The same of the gradients: of x, every start, every alpha and every parameter.
        worst_gradient: Name of the one it was found at.
        kept_bytes: What the chain kept from forward to backward, beside its outputs.
    """

    output_error: float
    gradient_error: float
    worst_gradient: str
    kept_bytes: int


def check_reversible(
    links: Sequence[Sequence[Coupling]], x: Tensor, features: Sequence[Tensor], tolerance: float = 2e-5
) -> ReversibleReport:
    """Train one step on a chain of links, reversibly and plainly, and compare.

    Args:
        links: Each a list of couplings, one for every level, whose functions are modules.
        x: Constant input of the chain.
        features: What it starts from, one tensor for each level.
        tolerance: Limit of the errors of outputs and gradients. The default is for float32; where gradients
            are zero in truth, check in float64.

    Raises:
        AssertionError: If an error is above the tolerance.
        RuntimeError: If the reconstruction is not exact, see :class:`revcol_mm.ops.ReversibleChain`.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from revcol_mm.ops import Coupling
        >>> alpha = nn.Parameter(torch.full((8,), 0.5))
        >>> def column():  # two levels: the upper one reads the lower one, and x
        ...     return [Coupling(0, (None, 1), nn.Bilinear(8, 8, 8), alpha),
        ...             Coupling(1, (0, None), nn.Bilinear(8, 8, 8), alpha)]
        >>> report = check_reversible([column() for _ in range(6)], torch.rand(4, 8), [torch.zeros(4, 8)] * 2)
        >>> report.output_error
        0.0
    """
    chain = ReversibleChain(links)
    (plain_outputs, plain), (outputs, reversible) = (
        _outputs_and_gradients(run, links, x, features) for run in (StoringChain(), chain)
    )
    check_reconstruction()
    named = [dict(enumerate(tensors)) for tensors in (outputs, plain_outputs)]
    report = ReversibleReport(
        worst_errors(*named)[0][0],
        *worst_errors(reversible, plain)[0],
        chain.kept_bytes,
    )
    if not max(report.output_error, report.gradient_error) <= tolerance:  # also of nan
        raise AssertionError(report)
    return report


def _outputs_and_gradients(
    run: Callable[[Sequence[Coupling], Tensor, Sequence[Tensor]], list[Tensor]],
    links: Sequence[Sequence[Coupling]],
    x: Tensor,
    features: Sequence[Tensor],
) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    inputs = {'x': x, **{f'start of level {level}': feature for level, feature in enumerate(features)}}
    inputs = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    x, *outputs = inputs.values()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for link in links:
            outputs = run(link, x, outputs)
        weights = [torch.randn_like(output) for output in outputs]
        loss = sum((output * weight).mean() for output, weight in zip(outputs, weights))
    for index, link in enumerate(links):
        for coupling in link:
            place = f'link {index}, level {coupling.level}'
            inputs[f'alpha of {place}'] = coupling.alpha
            for name, param in coupling.function.named_parameters():
                inputs[f'{name} of {place}'] = param
    inputs = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    return [output.detach() for output in outputs], dict(zip(inputs, grads))
