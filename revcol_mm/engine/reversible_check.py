"""Watching, during a run, how exact reversible training is."""

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from revcol_mm.models import RevCol


@HOOKS.register_module()
class ReversibleCheckHook(Hook):
    """Log the worst reconstruction error and the smallest ``|alpha|``.

    Both go to the log and to every visualizer backend, as ``reconstruction_error`` and ``min_abs_alpha``. The
    error is relative to the largest feature, see :class:`revcol_mm.ops.ReversibleChain`; 0 is what to expect.
    An error means that some layer gives other results for the same input when it is run again.

    Args:
        interval: Iterations from one check to the next. A check costs a few passes over the first column's
            features.
        tolerance: Warn of errors above this. The default is the resolution of float32.

    Raises:
        ValueError: If ``interval`` is below 1 or, before the first iteration, if no backbone is a RevCol with
            ``save_memory=True``.
    """

    def __init__(self, interval: int = 50, tolerance: float = 1e-7) -> None:
        if interval < 1:  # MMEngine takes that for never
            raise ValueError(f'interval takes a number of iterations from 1 on, got {interval}')
        self.interval = interval
        self.tolerance = tolerance

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.backbones = [m for m in model.modules() if isinstance(m, RevCol) and m.save_memory]
        if not self.backbones:
            raise ValueError('ReversibleCheckHook needs a RevCol backbone with save_memory=True')

    def before_train_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
        if self.every_n_train_iters(runner, self.interval):
            for backbone in self.backbones:
                backbone.reconstruction_errors = []

    def after_train_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        worst = {}
        errors = [error for backbone in self.backbones for error in backbone.reconstruction_errors]
        if errors:  # none where all of the first column is frozen
            worst['reconstruction_error'] = torch.stack(errors).max()
        couplings = [
            c for backbone in self.backbones for column in backbone.columns for c in column.couplings()
        ]
        worst['min_abs_alpha'] = torch.stack([c.alpha.detach().abs().min() for c in couplings]).min()
        for name, value in worst.items():
            all_reduce(value, 'min' if name == 'min_abs_alpha' else 'max')
            runner.message_hub.update_scalar(f'train/{name}', value.item())
        for backbone in self.backbones:
            backbone.reconstruction_errors = None
        if errors and not worst['reconstruction_error'] <= self.tolerance:
            runner.logger.warning(
                f'reversible training: reconstruction error {worst["reconstruction_error"].item():.1e}, '
                f'smallest |alpha| {worst["min_abs_alpha"].item():.1e}'
            )
