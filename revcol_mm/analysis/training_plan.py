"""Memory and FLOPs of a training that has not been run: counted where possible, otherwise extrapolated.

Activations cannot be counted on fake or meta tensors, because the losses of detectors match predictions to
objects by their values, and reversible backward compares values. They are extrapolated from measurements of
narrow models instead.

Letters: N parameters of the model, C of its largest column, R outside of the columns; G GPUs.
"""

import copy
from contextlib import contextmanager
from math import ceil
from typing import Any, Iterator, NamedTuple

import torch
from mmcv.ops import multi_scale_deform_attn
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from revcol_mm.models import RevCol
from revcol_mm.models.without_weights import without_weights
from revcol_mm.testing import peak_bytes

from .complexity import count_complexity
from .swap_in import adapt_in_channels, readers
from .synthetic_batch import synthetic_batch

OPTIMIZER_STATES = dict(AdamW=2, Adam=2, SGD=1)  # numbers per parameter; for SGD its momentum
BYTES = 4  # of a weight, gradient or state; they are float32 with autocast, too
NARROW = 24  # channels of level 0 in the models that are measured


class ParameterCounts(NamedTuple):
    """Numbers of parameters of a model.

    Args:
        total: N.
        column: C.
        rest: R.
        level: Of the largest level of a column, for which reversible backward creates all gradients at once.
    """

    total: int
    column: int
    rest: int
    level: int


class Memory(NamedTuple):
    """Bytes on each GPU.

    Args:
        weights: Weights that the GPU holds permanently.
        gradients: Gradients of these weights.
        optimizer: State of the optimizer.
        buffers: DDP's buckets, or the weights and gradients that fully_shard gathers.
        activations: Peak of a step beyond all of the above.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int


class _Sampling(torch.autograd.Function):
    """Deformable attention that uses as much memory as its CUDA kernel but computes only zeros.

    The implementation for CPUs needs much more memory.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        return value.new_zeros(len(value), locations.shape[1], value.shape[2] * value.shape[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        return torch.zeros_like(value), None, torch.zeros_like(locations), torch.zeros_like(weights)


def _build(cfg: Config) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(copy.deepcopy(cfg.model))  # detectors modify their config


def count_parameters(cfg: Config) -> ParameterCounts:
    """Count the parameters of a config's model without allocating them.

    Raises:
        ValueError: If the model's backbone is not a RevCol.
    """
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        backbone = registry.get(cfg.model.backbone.type)
    if backbone is None or not issubclass(backbone, RevCol):  # others may not build on the meta device
        raise ValueError(f'the backbone of {cfg.filename} is not a RevCol')
    with without_weights():
        model = _build(cfg)

    def count(module: torch.nn.Module) -> int:
        return sum(param.numel() for param in module.parameters())

    total = count(model)
    columns = [count(column) for column in model.backbone.columns]
    levels = [count(level) for column in model.backbone.columns for level in column.children()]
    return ParameterCounts(total, max(columns), total - sum(columns), max(levels))


def _narrow(cfg: Config, divisor: int, save_memory: bool) -> Config:
    """Return the config with the backbone's channels divided by a number."""
    with without_weights():
        backbone = _build(cfg).backbone
    cfg = copy.deepcopy(cfg)
    supervision = cfg.model.get('supervision') or {}
    for network in ({**cfg.model, 'supervision': None}, supervision):
        old = backbone.out_channels
        adapt_in_channels(readers(network), old, [channels // divisor for channels in old])
    connection = 'huge' if len(backbone.columns[-1].reads[0]) == 3 else 'standard'
    cfg.model.backbone.update(
        arch=dict(
            channels=[channels // divisor for channels in backbone.channels],
            layers=list(backbone.layers),
            num_columns=backbone.num_columns,
            level_connection=connection,
        ),
        save_memory=save_memory,
        init_cfg=None,
    )
    return cfg


@contextmanager
def _sampling_as_on_gpus() -> Iterator[None]:
    """Let MMCV's deformable attention on a CPU temporarily store no more than it does on a GPU."""
    original = multi_scale_deform_attn.multi_scale_deformable_attn_pytorch
    multi_scale_deform_attn.multi_scale_deformable_attn_pytorch = _Sampling.apply
    try:
        yield
    finally:
        multi_scale_deform_attn.multi_scale_deformable_attn_pytorch = original


def measure_activations(cfg: Config, height: int, width: int, device: str | torch.device = 'cpu') -> int:
    """Measure the peak bytes of forward and backward of one random image, without weights and gradients."""
    torch.manual_seed(0)
    model = _build(cfg)
    model.init_weights()  # some weights are uninitialised memory before, which may contain nan
    model.to(device).train()
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    batch = synthetic_batch(model, cfg.default_scope, 1, height, width)

    def step() -> None:
        data = model.data_preprocessor(copy.copy(batch), training=True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()

    with _sampling_as_on_gpus(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        if torch.device(device).type == 'cuda':
            step()  # allocates the workspaces of cuBLAS and cuDNN
        return peak_bytes(step, device)


def estimate_activations(
    cfg: Config,
    shape: tuple[int, int],
    save_memory: bool,
    counts: ParameterCounts,
    side: int = 256,
    device: str | torch.device = 'cpu',
) -> int:
    """Extrapolate the peak bytes of one image's activations from three measurements of narrow models.

    Activations are modelled as ``a + pixels * (b + c * channels)``, where a belongs to queries, b to heads
    and c to the backbone. Measured are a model with about 24 channels at level 0 on square images of two
    sizes, and a model with half as many channels on the larger images. With ``save_memory`` the gradients
    of the largest level are added, whose size is quadratic in channels.

    Args:
        cfg: Config of the model.
        shape: Height and width of the image.
        save_memory: Whether columns train reversibly.
        counts: Parameters of the model.
        side: Side of the smaller images in pixels; the larger ones have 1.5 times this side.
        device: Device to measure on.
    """
    with without_weights():
        channels = _build(cfg).backbone.channels
    divisor = max(1, channels[0] // NARROW)
    small, large = side, side * 3 // 2 // 32 * 32
    wide, thin = (_narrow(cfg, d, save_memory) for d in (divisor, 2 * divisor))
    wide_small, wide_large, thin_large = (
        measure_activations(model, s, s, device) for model, s in ((wide, small), (wide, large), (thin, large))
    )
    per_pixel = (wide_large - wide_small) / (large**2 - small**2)  # b + c * channels of the wide model
    constant = wide_small - per_pixel * small**2
    channel_part = 2 * (wide_large - thin_large) / large**2  # c * channels of the wide model
    activations = constant + shape[0] * shape[1] * (per_pixel + channel_part * (divisor - 1))
    return round(activations + (BYTES * counts.level if save_memory else 0))


def training_memory(
    counts: ParameterCounts, activations: int, batch_size: int, num_gpus: int, sharded: bool, optimizer: str
) -> Memory:
    """Compute the bytes on each of G GPUs.

    DDP: weights, gradients and optimizer state of all N parameters, and buckets of N gradients. fully_shard:
    N / G of the first three, and gathered tensors: R weights and gradients; the weights of two columns, since
    the next one is prefetched; and the gradients of a column with their reduce-scatter buffer.

    Args:
        counts: Parameters of the model.
        activations: Bytes of one image.
        batch_size: Images on each GPU.
        num_gpus: G.
        sharded: Whether fully_shard is used instead of DDP.
        optimizer: Type of the optimizer.

    Raises:
        ValueError: If the optimizer is unknown.
    """
    if optimizer not in OPTIMIZER_STATES:
        raise ValueError(f'the optimizer must be one of {", ".join(OPTIMIZER_STATES)}, got {optimizer!r}')
    share = ceil(BYTES * counts.total / (num_gpus if sharded else 1))
    if sharded:
        buffers = BYTES * (2 * counts.rest + 4 * counts.column)
    else:
        buffers = BYTES * counts.total if num_gpus > 1 else 0
    return Memory(share, share, OPTIMIZER_STATES[optimizer] * share, buffers, activations * batch_size)


def training_flops(cfg: Config, shape: tuple[int, int], save_memory: bool) -> int:
    """Compute the floating-point operations of a training step on one image.

    Each multiply-accumulate of inference counts as two operations. Backward takes twice as many as forward,
    and reversible training runs the backbone forward a second time.
    """
    flops = count_complexity(copy.deepcopy(cfg), shape).flops
    return 2 * (3 * flops.total() + (flops['backbone'] if save_memory else 0))
