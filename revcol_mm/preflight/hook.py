"""Hook that compares the data, model and config of a run before the first iteration."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from revcol_mm.data.findings import report
from revcol_mm.data.run_checks import check_run
from revcol_mm.data.splits import splits_of
from revcol_mm.errors import PreflightError
from revcol_mm.unwrapped import unwrapped

from .batch_norm import check_batch_norm
from .channels import check_images, check_normalisation
from .class_weights import check_class_weight_with_ignored_pixels, check_class_weights
from .feature_channels import check_channels
from .metrics import check_metrics
from .num_classes import check_num_classes
from .schedule import check_length, check_schedule
from .sliding_windows import check_sliding_windows


@HOOKS.register_module()
class PreflightHook(Hook):
    """Compare the data, model, evaluators and schedule of a run with each other before the first iteration.

    Problems with data are reported in one line for each kind. All files must exist, and of each data set 50
    evenly spaced images and masks are read. Problems that do not prevent training are logged as warnings.

    Raises:
        PreflightError: If the data are wrong, if the model's wrapper prevents reversible training, or for the
            reasons given in the other files of :mod:`revcol_mm.preflight`.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        check_length(runner.cfg.get('train_cfg') or {})
        _check_wrapper(runner.model)
        model = unwrapped(runner.model)
        check_channels(model, runner.cfg.get('model'))
        check_normalisation(model)
        check_sliding_windows(model)
        splits = []
        for name in ('train', 'val', 'test'):
            loop = getattr(runner, f'_{name}_loop')
            dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
            if dataset is not None:
                configs = runner.cfg.get(f'{name}_evaluator')
                evaluator = getattr(loop, 'evaluator', None)
                splits += splits_of(name, dataset, evaluator, configs, model)
                check_images(dataset, model)
        for split in splits:
            check_num_classes(model, split.where, split.dataset)
        check_class_weights(model)
        check_class_weight_with_ignored_pixels(model)
        report(check_run(splits))
        for split in splits:
            split.files.clear()  # else worker processes would copy hundreds of thousands of file names
        check_metrics(runner)
        if isinstance(runner._train_loop, BaseLoop):  # not in testing
            check_schedule(runner)
            check_batch_norm(runner)


def _check_wrapper(model: nn.Module) -> None:
    """Refuse wrappers in which reversible training would fail in the first backward pass."""
    for module in model.modules():
        if isinstance(module, (nn.DataParallel, FullyShardedDataParallel)):
            if any(getattr(part, 'save_memory', False) for part in module.modules()):
                raise PreflightError(
                    f'save_memory=True does not work in {type(module).__name__}, which hides parameters: '
                    'use MMDistributedDataParallel, or FullyShardedRunner'
                )
