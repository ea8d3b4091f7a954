"""The hook that compares a run's data, model and config before the first iteration."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import Dataset

from revcol_mm.models import RevCol

from .data import check_run, splits_of
from .errors import PreflightError
from .findings import report


@HOOKS.register_module()
class PreflightHook(Hook):
    """Compare the data sets of a run with its model, and that with its wrapper, before the first iteration.

    What is wrong with data is told in one line for each kind, by :func:`~.data.check_run`: all files are
    looked for, and of each data set 50 evenly spaced images and masks are read. Faults that a
    training can live with are warnings.

    Raises:
        PreflightError: If there is not one iteration to train; if a data set is wrong; if a head's
            ``num_classes`` is not its number of classes; if a neck or a head has other ``in_channels`` than a
            RevCol gives, or the model's wrapper does not let it train reversibly.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        self._check_length(runner)
        self._check_wrapper(runner.model)
        self._check_channels(runner)
        splits = []
        for name in ('train', 'val', 'test'):
            loop = getattr(runner, f'_{name}_loop')
            dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
            if dataset is not None:
                configs = runner.cfg.get(f'{name}_evaluator')
                evaluator = getattr(loop, 'evaluator', None)
                splits += splits_of(name, dataset, evaluator, configs, runner.model)
        for split in splits:
            self._check(runner, split.dataset)
        report(check_run(splits))
        for split in splits:
            split.files.clear()  # hundreds of thousands of names, which worker processes would get

    @staticmethod
    def _check_length(runner: Runner) -> None:
        """MMEngine would end without a word, or validate never."""
        for key in ('max_iters', 'max_epochs', 'val_interval'):
            value = (runner.cfg.get('train_cfg') or {}).get(key)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise PreflightError(f'train_cfg.{key} takes a whole number from 1 on, got {value!r}')

    @staticmethod
    def _check_wrapper(model: nn.Module) -> None:
        """Reversible training would find out too, but only in the first backward pass."""
        for module in model.modules():
            if isinstance(module, (nn.DataParallel, FullyShardedDataParallel)):
                if any(getattr(part, 'save_memory', False) for part in module.modules()):
                    raise PreflightError(
                        f'save_memory=True does not work in {type(module).__name__}, which hides parameters: '
                        'use MMDistributedDataParallel, or FullyShardedRunner'
                    )

    @staticmethod
    def _check_channels(runner: Runner) -> None:
        """The forward pass would find out too, but not say which number of the config is wrong."""
        backbones = [module for module in runner.model.modules() if isinstance(module, RevCol)]
        cfg = runner.cfg.get('model')
        cfg = cfg.get('module', cfg) if isinstance(cfg, dict) else {}  # under test-time augmentation
        if len(backbones) != 1:
            return
        given = backbones[0].out_channels
        names = ['neck'] if cfg.get('neck') else ['decode_head', 'auxiliary_head']
        for name in names:
            part = cfg.get(name)
            wanted = part.get('in_channels') if isinstance(part, dict) else None
            if wanted is None:
                continue
            index = part.get('in_index', range(len(wanted)) if isinstance(wanted, (list, tuple)) else -1)
            if isinstance(index, int):
                wanted, index = [wanted], [index]
            inside = all(-len(given) <= i < len(given) for i in index)
            channels = [given[i] for i in index] if inside else list(given)
            if list(wanted) != channels:
                raise PreflightError(
                    f'model.{name}.in_channels is {list(wanted)}, but the backbone gives {channels}'
                )

    def _check(self, runner: Runner, dataset: Dataset) -> None:
        name = f'{type(dataset).__name__} at {getattr(dataset, "data_root", "?")}'
        classes = getattr(dataset, 'metainfo', {}).get('classes')
        if not classes or isinstance(classes, str):
            return
        heads = [
            (head, module)
            for head, module in runner.model.named_modules()
            if head.split('.')[-1].endswith('head') and 'rpn' not in head
        ]
        for head, module in heads or [
            (type(runner.model).__name__, runner.model)
        ]:  # or one with plain layers
            num_classes = getattr(module, 'num_classes', None)
            if isinstance(num_classes, int) and num_classes != len(classes):
                raise PreflightError(
                    f'{head} of the model has num_classes={num_classes}, {name} has {len(classes)} classes'
                )
