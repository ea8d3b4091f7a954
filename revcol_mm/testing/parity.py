"""Comparing the gradients of two implementations of the same model."""

from typing import Any, Callable, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from revcol_mm.ops import Coupling, ReversibleChain, check_reconstruction

from .storing_chain import StoringChain


def gradients(model: nn.Module, image: Tensor, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """Compute the gradients of ``sum_i mean(output_i * weights_i)``, with random seed 0.

    Args:
        model: Returns a sequence of tensors.
        image: Input of the model.
        weights: One tensor for each output, of its shape.

    Returns:
        The gradients of all parameters by name, and of the input under 'input'; None for a missing gradient.
    """
    image = image.detach().clone().requires_grad_()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    terms = [(output * weight).mean() for output, weight in zip(model(image), weights, strict=True)]
    torch.stack(terms).sum().backward()
    return {'input': image.grad, **{name: param.grad for name, param in model.named_parameters()}}


def worst_errors(
    actual: Mapping[Any, Tensor | None], expected: Mapping[Any, Tensor | None]
) -> list[tuple[float, str]]:
    """Return the relative error of every gradient and its name, the largest error first.

    The error is ``max |actual - expected| / max |expected|``, the absolute error where the expected gradient
    is zero, and infinite where only one of the two exists. In float64 the divisor is at least 1e-8 of the
    largest gradient: smaller ones may be rounding errors of zero, for example of a bias before BatchNorm.
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
    """How reversible training of a chain compares with storing all activations.

    Args:
        output_error: Largest difference of an output, relative to its largest value.
        gradient_error: Largest relative error of a gradient: of x, initial features, alphas and parameters.
        worst_gradient: Name of the gradient with this error.
        kept_bytes: Bytes that the chain stored from forward to backward, in addition to its outputs.
    """

    output_error: float
    gradient_error: float
    worst_gradient: str
    kept_bytes: int


def check_reversible(
    links: Sequence[Sequence[Coupling]], x: Tensor, features: Sequence[Tensor], tolerance: float = 2e-5
) -> ReversibleReport:
    """Check that outputs and gradients of a chain are the same in reversible and in plain training.

    Args:
        links: Links of the chain: lists with a coupling for each level, whose functions are modules.
        x: Constant input of the chain.
        features: Initial features, one tensor per level.
        tolerance: Limit for the errors of outputs and gradients. The default suits float32; use float64 if
            some gradients are zero up to rounding.

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
    output_error, _ = worst_errors(dict(enumerate(outputs)), dict(enumerate(plain_outputs)))[0]
    report = ReversibleReport(output_error, *worst_errors(reversible, plain)[0], chain.kept_bytes)
    if not max(report.output_error, report.gradient_error) <= tolerance:  # also fails for nan
        raise AssertionError(f'an error is above the tolerance of {tolerance:g}: {report}')
    return report


def _outputs_and_gradients(
    run: Callable[[Sequence[Coupling], Tensor, Sequence[Tensor]], list[Tensor]],
    links: Sequence[Sequence[Coupling]],
    x: Tensor,
    features: Sequence[Tensor],
) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    inputs = {
        'x': x,
        **{f'initial feature of level {level}': feature for level, feature in enumerate(features)},
    }
    inputs = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    x, *outputs = inputs.values()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for link in links:
            outputs = run(link, x, outputs)
        weights = [torch.randn_like(output) for output in outputs]
        loss = torch.stack([(output * weight).mean() for output, weight in zip(outputs, weights)]).sum()
    for index, link in enumerate(links):
        for coupling in link:
            place = f'link {index}, level {coupling.level}'
            inputs[f'alpha of {place}'] = coupling.alpha
            if isinstance(coupling.function, nn.Module):
                params = coupling.function.named_parameters()
                inputs.update((f'{name} of {place}', param) for name, param in params)
    inputs = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    return [output.detach() for output in outputs], dict(zip(inputs, grads))
