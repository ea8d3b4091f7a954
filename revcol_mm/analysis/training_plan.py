"""Memory and time of a training that has not been run: counted where it can be, extrapolated where not.

Letters: N parameters of the model, C of its largest column, R of all but columns; G GPUs.
"""

import copy
from contextlib import ExitStack
from math import ceil
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from revcol_mm.models import RevCol
from revcol_mm.testing import peak_bytes

from .complexity import count_complexity
from .synthetic_batch import synthetic_batch

OPTIMIZER_STATES = dict(AdamW=2, Adam=2, SGD=1)  # numbers for each parameter; of SGD its momentum
BYTES = 4  # of a weight, gradient or state, with autocast too
NARROW = 24  # channels of level 0 of the models that are measured


class Sizes(NamedTuple):
    """Parameters of a model.

    Args:
        total: N.
        column: C.
        rest: R.
        level: Of the largest level of a column, whose gradients a reversible backward makes at once.
    """

    total: int
    column: int
    rest: int
    level: int


class Memory(NamedTuple):
    """Bytes on each GPU.

    Args:
        weights: Those that the GPU holds throughout.
        gradients: As many.
        optimizer: The optimizer's state.
        buffers: DDP's buckets; or what fully_shard gathers of weights and gradients.
        activations: The peak of a step beyond all these.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int


class _Sampling(torch.autograd.Function):
    """Deformable attention with the memory of its CUDA kernel, and no result: a CPU's needs much more."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        return value.new_zeros(len(value), locations.shape[1], value.shape[2] * value.shape[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        return torch.zeros_like(value), None, torch.zeros_like(locations), torch.zeros_like(weights)


def _build(cfg: Config, device: str = 'cpu') -> torch.nn.Module:
    with torch.device(device), DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(copy.deepcopy(cfg.model))  # detectors change theirs


def count_sizes(cfg: Config) -> Sizes:
    """Count parameters, without memory for them.

    Raises:
        ValueError: If the model's backbone is not a RevCol.
    """
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        backbone = registry.get(cfg.model.backbone.type)
    if backbone is None or not issubclass(backbone, RevCol):  # another may not build on the meta device
        raise ValueError(f'the backbone of {cfg.filename} is not a RevCol')
    model = _build(cfg, 'meta')

    def count(module: torch.nn.Module) -> int:
        return sum(param.numel() for param in module.parameters())

    columns = model.backbone.columns
    levels = [level for column in columns for level in column.children()]
    total = count(model)
    return Sizes(total, max(map(count, columns)), total - sum(map(count, columns)), max(map(count, levels)))


def _narrow(cfg: Config, divisor: int, save_memory: bool) -> Config:
    """The config with all channels of the backbone divided."""
    backbone = _build(cfg, 'meta').backbone
    widths = {channels: channels // divisor for channels in backbone.channels}

    def replace(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            if key == 'in_channels':
                many = isinstance(value, (list, tuple))
                node[key] = [widths.get(v, v) for v in value] if many else widths.get(value, value)
            for child in value if isinstance(value, (list, tuple)) else [value]:
                replace(child)

    cfg = copy.deepcopy(cfg)
    for key, part in cfg.model.items():
        if key != 'backbone':
            replace({key: part})
    connection = 'huge' if len(backbone.columns[-1].reads[0]) == 3 else 'standard'
    cfg.model.backbone.update(
        arch=dict(
            channels=list(widths.values()),
            layers=list(backbone.layers),
            num_columns=backbone.num_columns,
            level_connection=connection,
        ),
        save_memory=save_memory,
        init_cfg=None,
    )
    return cfg


def measure_activations(cfg: Config, height: int, width: int, device: str | torch.device = 'cpu') -> int:
    """Peak bytes of forward and backward of one random image, beyond weights and gradients."""
    torch.manual_seed(0)
    model = _build(cfg)
    model.init_weights()  # until then some are whatever was in memory, such as nan
    model.to(device).train()
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    batch = synthetic_batch(model, cfg.default_scope, 1, height, width)

    def step() -> None:
        data = model.data_preprocessor(copy.copy(batch), training=True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()

    with ExitStack() as stack, DefaultScope.overwrite_default_scope(cfg.default_scope):
        if cfg.default_scope != 'mmpretrain':
            place = 'mmcv.ops.multi_scale_deform_attn.multi_scale_deformable_attn_pytorch'
            stack.enter_context(patch(place, _Sampling.apply))
        if torch.device(device).type == 'cuda':
            step()  # takes the libraries' work space
        return peak_bytes(step, device)


def estimate_activations(
    cfg: Config,
    shape: tuple[int, int],
    save_memory: bool,
    sizes: Sizes,
    side: int = 256,
    device: str | torch.device = 'cpu',
) -> int:
    """Extrapolate the peak of one image's activations from three measurements of narrow models.

    Activations are ``a + pixels * (b + c * channels)``: a is what belongs to queries, b to heads, c to the
    backbone. The numbers come from a model with channels of about 24 at level 0 on images with ``side``
    and 1.5 times as many pixels a side, and one with half as many channels. The gradients that reversible
    backward makes of a level, whose size is square in channels, are added.

    Args:
        cfg: Config of the model.
        shape: Height and width of the image.
        save_memory: Whether columns train reversibly.
        sizes: Of the model.
        side: Of the smaller of the images that are measured.
        device: To measure on.
    """
    channels = _build(cfg, 'meta').backbone.channels
    divisor = max(1, channels[0] // NARROW)
    small, large = side, side * 3 // 2 // 32 * 32
    wide, thin = (_narrow(cfg, d, save_memory) for d in (divisor, 2 * divisor))
    measured = [
        measure_activations(model, s, s, device) for model, s in ((wide, small), (wide, large), (thin, large))
    ]
    slope = (measured[1] - measured[0]) / (large**2 - small**2)
    constant = measured[0] - slope * small**2
    # The channels of the two differ by half of those of the wide one.
    per_channel = 2 * (measured[1] - measured[2]) / large**2
    pixels = shape[0] * shape[1]
    bytes_ = constant + pixels * (slope + per_channel * (divisor - 1))
    return round(bytes_ + (BYTES * sizes.level if save_memory else 0))


def training_memory(
    sizes: Sizes, activations: int, batch_size: int, num_gpus: int, sharded: bool, optimizer: str
) -> Memory:
    """Bytes on each of G GPUs.

    With DDP all N of weights, gradients, states, and buckets in which gradients are summed. With fully_shard
    N / G of the first three; and gathered R weights and gradients of an iteration, two columns' weights, the
    next being fetched while one runs, and a column's gradients with the buffer from which they are summed.

    Raises:
        ValueError: If the state of the optimizer is not known.
    """
    if optimizer not in OPTIMIZER_STATES:
        raise ValueError(f'the optimizer is one of {", ".join(OPTIMIZER_STATES)}, got {optimizer!r}')
    states = OPTIMIZER_STATES[optimizer]
    share = ceil(BYTES * sizes.total / (num_gpus if sharded else 1))
    if sharded:
        buffers = BYTES * (2 * sizes.rest + 4 * sizes.column)
    else:
        buffers = BYTES * sizes.total if num_gpus > 1 else 0
    return Memory(share, share, states * share, buffers, activations * batch_size)


def training_flops(cfg: Config, shape: tuple[int, int], save_memory: bool) -> int:
    """Floating-point operations of a training step on one image.

    Two for each multiply-accumulate of inference; backward has twice as many as forward, and reversible
    training runs the backbone once more.
    """
    counted = count_complexity(copy.deepcopy(cfg), shape).flops
    return 2 * (3 * counted.total() + (counted['backbone'] if save_memory else 0))
