"""Parameters and FLOPs of every part of a config's model, counted without allocating its weights.

FLOPs are multiply-accumulates, as papers report them, of convolutions, linear layers and matrix products for
one image at inference. The model runs on torch's meta device, where tensors have a shape but no values.
"""

from collections import Counter
from functools import partial
from typing import Any, Iterator, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from revcol_mm.models.image_channels import image_channels
from revcol_mm.models.without_weights import without_weights

OTHER = 'other'  # FLOPs outside of all parts, such as Mask2Former's product of classes and masks


class Complexity(NamedTuple):
    """Parameters and FLOPs of a model.

    Args:
        shape: Height and width of the input, in pixels.
        parameters: Number of parameters of each part of the model, such as 'backbone'. Parts that only
            training uses, such as auxiliary heads, are included.
        flops: Multiply-accumulates of each part.
    """

    shape: tuple[int, int]
    parameters: Counter[str]
    flops: Counter[str]


class _ReadableSizes(TorchDispatchMode):
    """Keeps the values of integer tensors when a model runs on the meta device.

    Deformable attention reads the sizes of feature maps from an integer tensor. Integers that are moved to
    the meta device therefore stay on the CPU, and are moved only when combined with a meta tensor.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and str(kwargs.get('device')) == 'meta':
            if args[0].dtype == torch.int64:
                return args[0]
        devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        if len(devices) > 1:
            args = tree_map_only(Tensor, lambda tensor: tensor.to('meta'), args)
        return func(*args, **kwargs)


def default_shape(cfg: Config) -> tuple[int, int]:
    """Return the height and width for which papers report FLOPs.

    Detectors: 800 x 1280. Segmentors: the training crop, four times as wide (512 x 2048 and 640 x 2560 in the
    Swin and RevCol papers). Classifiers: the training crop.

    Raises:
        ValueError: If the training pipeline has no crop.
    """
    if cfg.default_scope == 'mmdet':
        return 800, 1280
    pipeline = cfg.train_dataloader.dataset.get('pipeline', ())
    crops = [
        t.get('crop_size', t.get('scale')) for t in pipeline if t.type in ('RandomCrop', 'RandomResizedCrop')
    ]
    if not crops:
        raise ValueError(f'{cfg.filename}: the training pipeline has no crop; give an input shape')
    height, width = crops[0] if isinstance(crops[0], (list, tuple)) else (crops[0], crops[0])
    return height, 4 * width if cfg.default_scope == 'mmseg' else width


def count_complexity(cfg: Config, shape: tuple[int, int] | None = None) -> Complexity:
    """Count the parameters and FLOPs of a config's model.

    Every box head is run on the number of proposals that the RPN keeps, every mask head on the largest number
    of detections. As usual, RoI pooling, NMS, normalisation, activations and interpolation do not count.
    ``shape`` is the height and width of the input, in pixels; None for :func:`default_shape`.

    Raises:
        ValueError: If the shape is not positive or too small for the model.
    """
    shape = tuple(shape or default_shape(cfg))
    if min(shape) < 1:
        raise ValueError(f'height and width of the input must be positive, got {shape[0]} and {shape[1]}')
    with without_weights(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).eval()
    parameters = Counter()
    for name, parameter in model.named_parameters():
        parameters[name.partition('.')[0]] += parameter.numel()
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _ReadableSizes():
        flops = _by_part(model, counter)
        _infer(model, torch.empty(1, image_channels(model), *shape, device='meta'))
    flops[OTHER] = counter.get_total_flops() - flops.total()
    for part in flops:
        flops[part] //= 2  # torch counts a multiplication and an addition as two
    return Complexity(shape, parameters, +flops)  # unary + drops parts without FLOPs


def _by_part(model: nn.Module, counter: FlopCounterMode) -> Counter[str]:
    """Return a Counter to which the model adds the FLOPs of each of its parts when it runs.

    FlopCounterMode's own attribution misses parts whose children are called directly.
    """
    flops, totals = Counter(), []

    def enter(*_: Any) -> None:
        totals.append(counter.get_total_flops())

    def leave(part: str, *_: Any) -> None:
        before = totals.pop()
        if not totals:  # the outermost module
            flops[part] += counter.get_total_flops() - before

    for name, module in model.named_modules():
        if name:
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(partial(leave, name.partition('.')[0]))
    return flops


def _infer(model: nn.Module, image: Tensor) -> None:
    """Run inference without the steps that need values, such as NMS, which have no multiply-accumulates."""
    size = tuple(image.shape[2:])
    meta = dict(img_shape=size, batch_input_shape=size)
    if hasattr(model, 'decode_head'):
        features = model.extract_feat(image)
        model.decode_head.predict(features, [meta], model.test_cfg)
    elif hasattr(model, 'roi_head'):
        features = model.extract_feat(image)
        model.rpn_head(features)
        for extractor, head, num_rois in _roi_heads(model):
            height, width = extractor.roi_layers[0].output_size
            head(image.new_empty(num_rois, extractor.out_channels, height, width))
    else:
        model(image, [BaseDataElement(metainfo=meta)])


def _roi_heads(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module, int]]:
    """Yield the RoI extractor, the head and the number of RoIs of every RoI head of a two-stage detector."""
    for kind, num_rois in (
        ('bbox', model.test_cfg.rpn.max_per_img),
        ('mask', model.test_cfg.rcnn.max_per_img),
    ):
        heads = getattr(model.roi_head, f'{kind}_head', None)
        extractors = getattr(model.roi_head, f'{kind}_roi_extractor', None)
        if isinstance(heads, nn.ModuleList):
            yield from ((extractor, head, num_rois) for extractor, head in zip(extractors, heads))
        elif heads is not None:
            yield extractors, heads, num_rois
