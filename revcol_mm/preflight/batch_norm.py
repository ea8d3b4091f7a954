"""Check that batch norm gets more than one value per channel."""

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from revcol_mm.errors import PreflightError


def check_batch_norm(runner: Runner) -> None:
    """Check that no batch norm gets one image of one pixel, such as UPerNet's after global pooling.

    torch then raises an error: at the end of an epoch, if only the last batch has a single image.

    Raises:
        PreflightError: With the layer, the numbers and what to change.

    Note:
        Sets the model to training mode, because some layers may stay frozen in it.
    """
    loop, cfg = runner._train_loop, runner.cfg.get('train_dataloader')
    if not isinstance(cfg, dict) or not isinstance(cfg.get('batch_size'), int) or cfg.get('batch_sampler'):
        return  # a custom batch sampler may form any batches
    loader, batch_size = loop.dataloader, cfg['batch_size']
    sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    has_last_batch = not isinstance(sampler, InfiniteSampler) and not cfg.get('drop_last', False)
    if isinstance(loop, IterBasedTrainLoop) and loop.max_iters < len(loader):
        has_last_batch = False
    if batch_size == 1:
        problem, remedy = 'train_dataloader.batch_size is 1', 'batch_size to 2 or more'
    elif has_last_batch and len(sampler) % batch_size == 1:
        images = f'{len(sampler)} images{" of each process" if get_world_size() > 1 else ""}'
        problem = f'train_dataloader.batch_size={batch_size} leaves one of {images} for the last batch'
        remedy = 'drop_last=True'
    else:
        return
    norm = _norm_after_pooling(runner.model.train())
    if norm is not None:
        raise PreflightError(
            f'{problem}, but {norm} of the model normalizes maps of 1 x 1 pixels over the batch, which needs '
            f"at least two: set {remedy}, or that head's norm_cfg to a norm over channels, such as "
            "dict(type='GN', num_groups=32)"
        )


def _norm_after_pooling(model: nn.Module) -> str | None:
    """Return the first trained batch norm that follows a global pooling in an ``nn.Sequential``."""
    for path, module in model.named_modules():
        if not isinstance(module, nn.Sequential):
            continue
        pooled = False
        for name, child in module.named_children():
            pooled |= isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1), [1, 1])
            for inner, norm in child.named_modules():
                if pooled and isinstance(norm, _BatchNorm) and norm.training and not _is_synchronized(norm):
                    return '.'.join(filter(None, (path, name, inner)))
    return None


def _is_synchronized(norm: _BatchNorm) -> bool:
    """Whether a norm uses the images of several processes."""
    return 'SyncB' in type(norm).__name__ and get_world_size() > 1
