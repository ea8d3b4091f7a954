"""Let hooks run code before the backward pass and before an optimizer step, and skip either.

MMEngine has no hook at these points. torch's ``Optimizer.register_step_pre_hook`` is too late: gradients are
clipped by then, and it cannot skip a step.
"""

from typing import Any, Callable

from mmengine.optim import OptimWrapper, OptimWrapperDict

from revcol_mm.errors import PreflightError


def guard(optim_wrapper: OptimWrapper, name: str, allow: Callable[..., bool]) -> None:
    """Replace a method by one that first calls ``allow``, and runs the method only if that returns True.

    Args:
        optim_wrapper: The optimizer wrapper, whose attribute is replaced until :func:`remove_guards`.
        name: Name of the method: 'update_params', or 'step', which runs before gradients are clipped.
        allow: Called each time with the arguments of the method. Several guards of one method can be nested.

    Raises:
        PreflightError: If the run has several optimizers: when the second one is about to make its step, the
            first one has already changed weights.
    """
    if isinstance(optim_wrapper, OptimWrapperDict):
        names = ', '.join(optim_wrapper.keys())
        raise PreflightError(
            'NonFiniteHook and ColumnStatisticsHook work with one optimizer, but optim_wrapper has several: '
            f'{names}; remove the hooks, the first by default_hooks = dict(nonfinite=None)'
        )
    method = getattr(optim_wrapper, name)

    def guarded(*args: Any, **kwargs: Any) -> None:
        if allow(*args, **kwargs):
            method(*args, **kwargs)

    setattr(optim_wrapper, name, guarded)


def remove_guards(optim_wrapper: OptimWrapper) -> None:
    """Restore all methods of the class, also those that other hooks have guarded."""
    for name in ('update_params', 'step'):
        vars(optim_wrapper).pop(name, None)
