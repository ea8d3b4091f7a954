"""Compare the channels and levels of a backbone, a neck and heads."""

from typing import Any, Iterator

from mmengine.config import Config
from torch import nn

from revcol_mm.errors import PreflightError
from revcol_mm.models import ColumnBackbone


def check_channels(model: nn.Module, cfg: Config | dict[str, Any]) -> None:
    """Compare the ``in_channels`` of necks and heads with the channels of a RevCol, or of the neck.

    The forward pass would also fail, but without naming the number in the config that is wrong.

    Args:
        model: The model.
        cfg: The config's ``model``.

    Raises:
        PreflightError: For the first number that differs.
    """
    cfg = cfg.get('module', cfg) if isinstance(cfg, dict) else {}  # inside of test-time augmentation
    backbones = [module for module in model.modules() if isinstance(module, ColumnBackbone)]
    necks = list(_parts(cfg, 'neck'))
    if len(backbones) == 1:
        readers = necks[:1] or [*_parts(cfg, 'decode_head'), *_parts(cfg, 'auxiliary_head')]
        for path, part in readers:
            _check_in_channels(path, part, backbones[0].out_channels)
    if necks:
        _, neck = necks[-1]
        channels, num_levels = neck.get('out_channels'), neck.get('num_outs')
        if type(channels) is int:
            _check_after_neck(model, channels)
        if type(num_levels) is int:
            _check_num_levels(model, num_levels)


def _parts(cfg: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and config of a part of the model, or of each if it is a list."""
    part = cfg.get(key)
    if isinstance(part, (list, tuple)):
        yield from ((f'{key}.{i}', each) for i, each in enumerate(part) if isinstance(each, dict))
    elif isinstance(part, dict):
        yield key, part


def _check_in_channels(path: str, part: dict[str, Any], given: tuple[int, ...]) -> None:
    """Compare ``in_channels`` of a part, at its ``in_index``, with the channels of each level."""
    wanted = part.get('in_channels')
    if wanted is None:
        return
    index = part.get('in_index', range(len(wanted)) if isinstance(wanted, (list, tuple)) else -1)
    if isinstance(index, int):
        wanted, index = [wanted], [index]
    is_valid = all(-len(given) <= i < len(given) for i in index)
    channels = [given[i] for i in index] if is_valid else list(given)
    if list(wanted) != channels:
        raise PreflightError(f'model.{path}.in_channels is {list(wanted)}, but the backbone gives {channels}')


def _check_after_neck(model: nn.Module, channels: int) -> None:
    """Compare the channels of a detector's heads with those of the neck before them."""
    for name in ('rpn_head', 'bbox_head'):
        wanted = getattr(getattr(model, name, None), 'in_channels', None)
        if type(wanted) is int and wanted != channels:
            raise PreflightError(f'model.{name}.in_channels is {wanted}, but the neck gives {channels}')
    for path, module in model.named_modules():
        is_extractor = path.startswith('roi_head.') and type(module).__name__ == 'SingleRoIExtractor'
        if is_extractor and module.out_channels != channels:
            raise PreflightError(
                f'out_channels of {path} in the model is {module.out_channels}, but the neck gives {channels}'
            )


def _check_num_levels(model: nn.Module, num_outs: int) -> None:
    """Compare the number of levels of a detector's heads and attention with that of the neck before them."""
    for name in ('rpn_head', 'bbox_head'):
        generator = getattr(getattr(model, name, None), 'prior_generator', None)
        num_levels = getattr(generator, 'num_levels', None)
        if type(num_levels) is int and num_levels != num_outs:
            raise PreflightError(
                f'model.neck.num_outs is {num_outs}, but model.{name} has {num_levels} strides, one for each '
                'level'
            )
    for path, module in model.named_modules():
        num_levels = getattr(module, 'num_levels', None)  # of deformable attention
        if (
            path.split('.')[0] in ('encoder', 'decoder')
            and type(num_levels) is int
            and num_levels != num_outs
        ):
            raise PreflightError(
                f'model.neck.num_outs is {num_outs}, but num_levels of {path} ({type(module).__name__}) is '
                f'{num_levels}'
            )
    num_levels = getattr(model, 'num_feature_levels', None)
    if type(num_levels) is int and num_levels != num_outs:
        raise PreflightError(f'model.num_feature_levels is {num_levels}, but model.neck.num_outs {num_outs}')
