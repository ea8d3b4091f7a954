"""Numbers in a model's config that do not fit its classes, its other parts or its batches.

MMDetection's NumClassCheckHook compares classes, too: each epoch, without the key that is wrong, and with
false alarms for panoptic models and MMSegmentation's boundary heads.
"""

import logging
from typing import Any, Iterator

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from revcol_mm.errors import PreflightError
from revcol_mm.models import ColumnBackbone

# Whose num_classes is that of other data than the detector's or segmentor's: ImageNet, foreground or not,
# people, COCO's stuff, boundaries.
OTHER_PARTS = {'backbone', 'reid'}
OTHER_HEADS = {'FusedSemanticHead', 'PanopticFPNHead', 'STDCHead'}


def check_num_classes(model: nn.Module, name: str, dataset: Dataset) -> None:
    """Compare every ``num_classes`` in a model, of heads and of losses, with a data set's classes.

    Args:
        model: The model of the run.
        name: The data set's name, for messages.
        dataset: With ``classes`` in its ``metainfo``; a panoptic one also with ``thing_classes`` and
            ``stuff_classes``.

    Raises:
        PreflightError: With the first number that is another one.
    """
    model, metainfo = _unwrapped(model), getattr(dataset, 'metainfo', {})
    classes = metainfo.get('classes')
    if not classes or isinstance(classes, str):
        return
    if hasattr(model, 'language_model'):  # classes are words
        return
    num_classes = len(classes)
    things, stuff = (len(metainfo.get(f'{kind}_classes') or ()) for kind in ('thing', 'stuff'))
    allowed = {num_classes, things} if stuff else {num_classes}  # heads of boxes know things alone
    whole, *parts = model.named_modules()
    for path, module in (*parts, whole):  # a segmentor has its head's number
        if OTHER_PARTS & set(path.split('.')):
            continue
        where = f'{path or type(model).__name__} of the model'
        for key, wanted in (('num_things_classes', things), ('num_stuff_classes', stuff)):
            number = getattr(module, key, None)
            if stuff and number is not None and number != wanted:
                raise PreflightError(f'{where} has {key}={number}, {name} has {wanted}: set it to {wanted}')
        number = getattr(module, 'num_classes', None)
        if type(number) is not int or number < 1 or number in allowed or _counts_others(module):
            continue
        raise PreflightError(
            f'{where} has num_classes={number}, {name} has {num_classes} classes: set it to {num_classes}, '
            'or metainfo=dict(classes=...) of the data set to its classes'
        )


def _counts_others(module: nn.Module) -> bool:
    bases = {base.__name__ for base in type(module).__mro__}
    if bases & OTHER_HEADS or any('RPN' in base for base in bases):
        return True
    if hasattr(module, 'to_onehot'):  # MMPretrain's data preprocessor, which needs it for one-hot labels
        return not module.to_onehot and getattr(module, 'batch_augments', None) is None
    return False


def check_class_weights(model: nn.Module) -> None:
    """Compare the length of every loss's list of weights with the outputs of its head.

    Raises:
        PreflightError: With the first list of another length.
    """
    model = _unwrapped(model)
    owners = {'': model}
    for path, module in model.named_modules():
        parent = owners[path.rpartition('.')[0]] if path else model
        owners[path] = module if isinstance(getattr(module, 'num_classes', None), int) else parent
        num_outputs, why = _num_outputs(owners[path], module, path)
        for key in ('class_weight', 'alpha', 'pos_weight'):
            weights = getattr(module, key, None)
            if num_outputs and isinstance(weights, (list, tuple, np.ndarray)) and len(weights) != num_outputs:
                raise PreflightError(
                    f'{path}.{key} of the model has {len(weights)} numbers; it takes {num_outputs}, one for '
                    f'each {why}'
                )


def check_weighted_pixels(model: nn.Module) -> None:
    """Warn of losses that fail at the first pixel without a label.

    In MMSegmentation 1.2.2 this is CrossEntropyLoss with ``class_weight`` (its issue 3734), whose error says
    no more than that an index is out of bounds, and on a GPU ends the process.
    """
    for path, head in _unwrapped(model).named_modules():
        if not hasattr(head, 'loss_decode') or not hasattr(head, 'ignore_index'):
            continue
        losses = head.loss_decode if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]
        for loss in losses:
            # Other losses, such as OhemCrossEntropy, take other arguments, and have not this fault.
            criterion = getattr(getattr(loss, 'cls_criterion', None), '__name__', '')
            if criterion != 'cross_entropy' or loss.class_weight is None:
                continue
            scores = torch.zeros(1, len(loss.class_weight), 1, 1, device='cpu')
            labels = torch.full((1, 1, 1), head.ignore_index, device='cpu')
            try:
                loss(scores, labels, ignore_index=head.ignore_index)
            except IndexError:
                name = type(loss).__name__
                print_log(
                    f"{path}.loss_decode: MMSegmentation's {name} with class_weight fails at the first pixel "
                    f'that is ignored ({head.ignore_index}), in padding or in the data: leave class_weight '
                    "out, or set reduction='sum' and loss_weight to 1 / (pixels of a batch)",
                    'current',
                    level=logging.WARNING,
                )


def _num_outputs(head: nn.Module, loss: nn.Module, path: str) -> tuple[int, str]:
    """How many weights a loss of a head takes, and what they are of; 0 if that is not known."""
    packages = {base.__module__.partition('.')[0] for base in type(head).__mro__}
    uses_sigmoid = getattr(loss, 'use_sigmoid', False)
    if head is loss or not isinstance(getattr(head, 'num_classes', None), int):
        return 0, ''
    if 'mmdet' in packages:
        if path.rpartition('.')[2] != 'loss_cls' or hasattr(loss, 'get_cls_channels'):
            return 0, ''
        if uses_sigmoid:
            return head.num_classes, 'class'
        return head.num_classes + 1, 'class and the last for none of them'
    if 'mmseg' in packages:
        # Where binary cross-entropy has a list, it is of something else.
        if 'loss_decode' not in path or (uses_sigmoid and 'CrossEntropy' in type(loss).__name__):
            return 0, ''
        return head.out_channels, 'class'
    if 'mmpretrain' in packages:
        return head.num_classes, 'class'
    return 0, ''


def check_channels(model: nn.Module, cfg: Config | dict[str, Any]) -> None:
    """Compare the ``in_channels`` of what reads a RevCol, or its neck, with the channels that are there.

    The forward pass would find out too, but not say which number of the config is wrong.

    Args:
        model: The model of the run.
        cfg: The config's ``model``.

    Raises:
        PreflightError: With the first that differs.
    """
    model = _unwrapped(model)
    cfg = cfg.get('module', cfg) if isinstance(cfg, dict) else {}  # under test-time augmentation
    backbones = [module for module in model.modules() if isinstance(module, ColumnBackbone)]
    necks = list(_parts(cfg, 'neck'))
    if len(backbones) == 1:
        given = backbones[0].out_channels
        readers = necks[:1] or [*_parts(cfg, 'decode_head'), *_parts(cfg, 'auxiliary_head')]
        for path, part in readers:
            _check_levels(path, part, given)
    if necks:
        _check_after_neck(model, necks[-1][1])


def _parts(cfg: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A part's config with its key, or each of a list of them."""
    part = cfg.get(key)
    if isinstance(part, (list, tuple)):
        yield from ((f'{key}.{i}', each) for i, each in enumerate(part) if isinstance(each, dict))
    elif isinstance(part, dict):
        yield key, part


def _check_levels(path: str, part: dict[str, Any], given: tuple[int, ...]) -> None:
    wanted = part.get('in_channels')
    if wanted is None:
        return
    index = part.get('in_index', range(len(wanted)) if isinstance(wanted, (list, tuple)) else -1)
    if isinstance(index, int):
        wanted, index = [wanted], [index]
    inside = all(-len(given) <= i < len(given) for i in index)
    channels = [given[i] for i in index] if inside else list(given)
    if list(wanted) != channels:
        raise PreflightError(f'model.{path}.in_channels is {list(wanted)}, but the backbone gives {channels}')


def _check_after_neck(model: nn.Module, neck: dict[str, Any]) -> None:
    """Compare a detector's heads with the channels and the number of levels of the neck before them."""
    channels, num_outs = neck.get('out_channels'), neck.get('num_outs')
    for name in ('rpn_head', 'bbox_head'):
        head = getattr(model, name, None)
        wanted = getattr(head, 'in_channels', None)
        if type(wanted) is type(channels) is int and wanted != channels:
            raise PreflightError(f'model.{name}.in_channels is {wanted}, but the neck gives {channels}')
        generator = getattr(head, 'prior_generator', None)
        num_levels = getattr(generator, 'num_levels', None)
        if type(num_levels) is type(num_outs) is int and num_levels != num_outs:
            raise PreflightError(
                f'model.neck.num_outs is {num_outs}, but model.{name} has {num_levels} strides, one for each '
                'level'
            )
    for path, module in model.named_modules():
        where = path.split('.')[0]
        if where in ('encoder', 'decoder') and type(num_outs) is int:
            num_levels = getattr(module, 'num_levels', None)  # of deformable attention
            if type(num_levels) is int and num_levels != num_outs:
                raise PreflightError(
                    f'model.neck.num_outs is {num_outs}, but num_levels of {path} ({type(module).__name__}) '
                    f'is {num_levels}'
                )
        if where == 'roi_head' and type(module).__name__ == 'SingleRoIExtractor':
            if type(channels) is int and module.out_channels != channels:
                raise PreflightError(
                    f'out_channels of {path} in the model is {module.out_channels}, but the neck gives '
                    f'{channels}'
                )
    num_levels = getattr(model, 'num_feature_levels', None)
    if type(num_levels) is type(num_outs) is int and num_levels != num_outs:
        raise PreflightError(f'model.num_feature_levels is {num_levels}, model.neck.num_outs {num_outs}')


def check_batch_norm(runner: Runner) -> None:
    """Check that no batch norm gets a batch of one map of one pixel, such as UPerNet's after global pooling.

    torch raises an error then, at the end of an epoch if only its last batch is of one image. The model is
    set to training mode, in which it will be anyway, and some layers may stay frozen.

    Raises:
        PreflightError: With the layer, the numbers and what there is to change.
    """
    loop, cfg = runner._train_loop, runner.cfg.get('train_dataloader')
    if not isinstance(cfg, dict) or not isinstance(cfg.get('batch_size'), int) or cfg.get('batch_sampler'):
        return  # how many images are in a batch only a batch sampler can know
    loader, batch_size = loop.dataloader, cfg['batch_size']
    sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    ends = not isinstance(sampler, InfiniteSampler) and not cfg.get('drop_last', False)
    if isinstance(loop, IterBasedTrainLoop) and loop.max_iters < len(loader):
        ends = False
    if batch_size == 1:
        problem, remedy = 'train_dataloader.batch_size is 1', 'batch_size to 2 or more'
    elif ends and len(sampler) % batch_size == 1:
        images = f'{len(sampler)} images{" of each process" if get_world_size() > 1 else ""}'
        problem = f'of {images} train_dataloader.batch_size={batch_size} leaves one for the last batch'
        remedy = 'drop_last=True'
    else:
        return
    norm = _norm_of_one_pixel(runner.model.train())
    if norm is not None:
        raise PreflightError(
            f'{problem}, but {norm} of the model normalizes maps of 1 x 1 pixels over the batch, which takes '
            f"two: set {remedy}, or that head's norm_cfg to one over channels, such as dict(type='GN', "
            'num_groups=32)'
        )


def _norm_of_one_pixel(model: nn.Module) -> str | None:
    """The first batch norm that follows a global pooling in a sequence, in training mode."""
    for path, module in model.named_modules():
        if not isinstance(module, nn.Sequential):
            continue
        pooled = False
        for name, child in module.named_children():
            pooled |= isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1), [1, 1])
            for inner, norm in child.named_modules():
                if pooled and isinstance(norm, _BatchNorm) and norm.training and not _is_shared(norm):
                    return '.'.join(filter(None, (path, name, inner)))
    return None


def _is_shared(norm: _BatchNorm) -> bool:
    """Whether a norm sees the images of several processes."""
    return 'SyncB' in type(norm).__name__ and get_world_size() > 1


def _unwrapped(model: nn.Module) -> nn.Module:
    """A model out of DistributedDataParallel and the like, whose parts' names begin with 'module.'."""
    return getattr(model, 'module', model)
