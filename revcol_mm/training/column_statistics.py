"""Watching, during a run, what becomes of alphas, features and gradients from column to column.

Letters: N columns; B batch, C_l channels, H_l and W_l at level l.
"""

import sys
from functools import partial
from typing import Any, Sequence

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from revcol_mm.models import ColumnBackbone
from revcol_mm.models.layers import bound_alpha

try:
    import resource
except ModuleNotFoundError:  # on Windows
    resource = None


@HOOKS.register_module()
class ColumnStatisticsHook(Hook):
    """Log statistics of every column, and peak memory, to the log and to every visualizer backend.

    For backends a statistic is a group of N scalars, such as ``feature_variance/column_03``; with several
    backbones of columns in a model a column's name begins with that of its backbone:

    - ``min_abs_alpha``, ``mean_abs_alpha``: of the alphas of all levels. Those of the first column have
      nothing to multiply and do not move.
    - ``feature_variance``: of each channel over B, H_l and W_l; the mean over channels, then levels. 0 means
      that a column tells no image from another.
    - ``gradient_norm``: L2 norm over the column's parameters in the optimizer's step, without AMP's scale
      and before clipping. Frozen columns have none.
    - ``peak_memory_mib``: ``cuda``, what torch allocated since the last line of LoggerHook, or on other
      devices ``process``, its resident memory since it began, which Windows does not tell. Of several
      processes the worst.

    Training is the same to the bit with it; no column is stored for it, with ``save_memory`` neither.

    Args:
        interval: Iterations from one log to the next. Where gradients are accumulated or an iteration is
            skipped it is the first optimizer's step from then on. Iterations between cost nothing.

    Raises:
        ValueError: If ``interval`` is below 1 or, before the first iteration, if no backbone has columns.
    """

    def __init__(self, interval: int = 50) -> None:
        if interval < 1:  # MMEngine takes that for never
            raise ValueError(f'interval takes a number of iterations from 1 on, got {interval}')
        self.interval = interval
        self.due = False
        self.variances: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] | None = None  # None: no step yet

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        backbones = {name: m for name, m in model.named_modules() if isinstance(m, ColumnBackbone)}
        if not backbones:
            raise ValueError('ColumnStatisticsHook needs a backbone of columns, such as RevCol')
        self.columns = {
            f'{f"{name}." if len(backbones) > 1 else ""}column_{index:02}': column
            for name, backbone in backbones.items()
            for index, column in enumerate(backbone.columns)
        }
        # Columns themselves are called once, whether or not backward runs their levels again.
        self.handles = [
            column.register_forward_hook(partial(self._watch_features, name))
            for name, column in self.columns.items()
        ]
        step = runner.optim_wrapper.step

        def watched(*args: Any, **kwargs: Any) -> None:
            if self.due:
                self._watch_gradients(getattr(runner.optim_wrapper, 'loss_scaler', None))
            step(*args, **kwargs)

        runner.optim_wrapper.step = watched

    def after_train(self, runner: Runner) -> None:
        for handle in self.handles:
            handle.remove()
        vars(runner.optim_wrapper).pop('step', None)  # the class's own is below it and other hooks'

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self.due = self.due or self.every_n_train_iters(runner, self.interval)

    def _watch_features(self, name: str, column: nn.Module, inputs: Any, features: Sequence[Tensor]) -> None:
        if self.due:
            levels = [feature.detach().var((0, 2, 3), correction=0).mean() for feature in features]
            self.variances[name] = torch.stack(levels).mean()

    def _watch_gradients(self, scaler: Any) -> None:
        scale = scaler.get_scale() if scaler else 1.0
        grads = {
            name: [param.grad for param in column.parameters() if param.grad is not None]
            for name, column in self.columns.items()
        }
        self.norms = {name: _whole(get_total_norm(g)) / scale for name, g in grads.items() if g}

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self.norms is None:
            return
        alphas = {}
        for name, column in self.columns.items():
            alpha = torch.cat([_whole(a.detach()).flatten() for a in column.alphas])
            alphas[name] = bound_alpha(alpha).abs()
        for variance in self.variances.values():
            all_reduce(variance, 'mean')
        statistics = dict(
            min_abs_alpha={name: alpha.min() for name, alpha in alphas.items()},
            mean_abs_alpha={name: alpha.mean() for name, alpha in alphas.items()},
            feature_variance=self.variances,
            gradient_norm=self.norms,
        )
        peaks = peak_memory(next(runner.model.parameters()).device)
        scalars = {f'peak_memory_mib/{kind}': peak for kind, peak in peaks.items()}
        lines = [', '.join(['columns', *(f'peak memory {p:.0f} MiB ({kind})' for kind, p in peaks.items())])]
        for statistic, tensors in statistics.items():
            values = {f'{statistic}/{name}': tensor.item() for name, tensor in tensors.items()}
            scalars.update(values)
            lines.append(f'    {statistic:16}' + ''.join(f'{value:11.4g}' for value in values.values()))
        # With 'iter', as LoggerHook's records of training have it: W&B keeps no other step.
        scalars['iter'] = runner.iter + 1
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        runner.logger.info('\n'.join(lines))
        self.due, self.variances, self.norms = False, {}, None


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor that FSDP2 has sharded; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor


def peak_memory(device: torch.device) -> dict[str, float]:
    """The peak in MiB of what can be counted, 'cuda' or 'process'; of all processes the largest."""
    if device.type == 'cuda':
        kind, num_bytes = 'cuda', torch.cuda.max_memory_allocated(device)
    elif resource is None:
        return {}
    else:
        unit = 1 if sys.platform == 'darwin' else 1024
        kind, num_bytes = 'process', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peak = torch.tensor(num_bytes / 2**20, device=device)
    all_reduce(peak, 'max')
    return {kind: peak.item()}
