"""Log statistics of the alphas, features and gradients of every column during training.

Letters: N columns; B batch, C_l channels, H_l and W_l at level l.
"""

import sys
from functools import partial
from typing import Any, Sequence

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from revcol_mm.models import ColumnBackbone
from revcol_mm.models.layers import bound_alpha
from revcol_mm.unwrapped import unwrapped

from .guarded_methods import guard, remove_guards
from .sharded_tensors import full_tensor

try:
    import resource
except ModuleNotFoundError:  # on Windows
    resource = None


@HOOKS.register_module()
class ColumnStatisticsHook(Hook):
    """Log statistics of every column and the peak memory, to the log and to all visualizer backends.

    In visualizer backends a statistic is a group of N scalars, such as ``feature_variance/column_03``. If the
    model has several column backbones, the name of the backbone precedes that of the column:

    - ``min_abs_alpha``, ``mean_abs_alpha``: over the alphas of all levels. The first column's alphas are
      constant because they have no preceding column to scale.
    - ``feature_variance``: variance of each channel over B, H_l and W_l, averaged over channels and then
      levels. 0 means that the column gives the same features for all images.
    - ``gradient_norm``: L2 norm over the column's parameters in an optimizer step, before clipping and
      without the loss scale of mixed precision. Frozen columns have none.
    - ``peak_memory_mib``: ``cuda``, memory allocated by torch since LoggerHook last logged; on other devices
      ``process``, peak resident memory of the process, unavailable on Windows. The maximum over processes.

    The hook does not change the training and stores no features.

    Args:
        interval: Iterations between logs. If no optimizer step is taken in an iteration (gradient
            accumulation, skipped iteration), the next step is logged. Other iterations cost nothing.

    Raises:
        ValueError: If ``interval`` is below 1 or, before the first iteration, if the model has no column
            backbone.
    """

    def __init__(self, interval: int = 50) -> None:
        if interval < 1:  # MMEngine would never log
            raise ValueError(f'interval must be 1 or more iterations, got {interval}')
        self.interval = interval
        self.due = False
        self.variances: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] | None = None  # None: no optimizer step yet

    def before_train(self, runner: Runner) -> None:
        model = unwrapped(runner.model)
        backbones = {name: m for name, m in model.named_modules() if isinstance(m, ColumnBackbone)}
        if not backbones:
            raise ValueError(
                f'ColumnStatisticsHook needs a column backbone such as RevCol, got {type(model).__name__}'
            )
        self.columns = {
            f'{f"{name}." if len(backbones) > 1 else ""}column_{index:02}': column
            for name, backbone in backbones.items()
            for index, column in enumerate(backbone.columns)
        }
        # A column is called once even with save_memory, whose backward pass calls its levels again.
        self.handles = [
            column.register_forward_hook(partial(self._record_features, name))
            for name, column in self.columns.items()
        ]
        guard(runner.optim_wrapper, 'step', partial(self._record_gradients, runner))

    def after_train(self, runner: Runner) -> None:
        for handle in self.handles:
            handle.remove()
        remove_guards(runner.optim_wrapper)

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self.due = self.due or self.every_n_train_iters(runner, self.interval)

    def _record_features(self, name: str, column: nn.Module, inputs: Any, features: Sequence[Tensor]) -> None:
        if self.due:
            levels = [feature.detach().var((0, 2, 3), correction=0).mean() for feature in features]
            self.variances[name] = torch.stack(levels).mean()

    def _record_gradients(self, runner: Runner, **step_kwargs: Any) -> bool:
        """Guard of the optimizer step, which it always allows."""
        if self.due:
            scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
            scale = scaler.get_scale() if scaler else 1.0
            grads = {
                name: [param.grad for param in column.parameters() if param.grad is not None]
                for name, column in self.columns.items()
            }
            self.norms = {name: full_tensor(get_total_norm(g)) / scale for name, g in grads.items() if g}
        return True

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self.norms is None:
            return
        alphas = {}
        for name, column in self.columns.items():
            alpha = torch.cat([full_tensor(a.detach()).flatten() for a in column.alphas])
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
        scalars['iter'] = runner.iter + 1  # W&B needs the same step as in LoggerHook's records
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        runner.logger.info('\n'.join(lines))
        self.due, self.variances, self.norms = False, {}, None


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory in MiB, of 'cuda' or the 'process': the maximum over processes."""
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
