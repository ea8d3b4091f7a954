"""Comparing the gradients of two ways to compute the same model."""

from typing import Sequence

import torch
from torch import Tensor, nn


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
        expected gradient is zero) and its name. Infinite where one of the two is missing.
    """
    errors = []
    for name, reference in expected.items():
        if (reference is None) != (actual[name] is None):
            errors.append((float('inf'), name))
        elif reference is not None:
            difference = (actual[name].double() - reference.double()).abs().max().item()
            errors.append((difference / (reference.abs().max().item() or 1.0), name))
    return sorted(errors, reverse=True)
