"""Parameters and FLOPs of a config's model, part by part, without memory for its weights.

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

OTHER = 'other'  # what belongs to no part: of Mask2Former, the product of classes and masks


class Complexity(NamedTuple):
    """What was counted.

    Args:
        shape: Height and width of the input, in pixels.
        parameters: Number of parameters of each part of the model, such as 'backbone'. They are those of the
            model as trained: auxiliary heads, which inference does not run, are among them.
        flops: Multiply-accumulates of each part.
    """

    shape: tuple[int, int]
    parameters: Counter[str]
    flops: Counter[str]


class _ReadableSizes(TorchDispatchMode):
    """Lets code that runs on the meta device read sizes of feature maps back from tensors.

    Deformable attention does so. Integers that are moved to the meta device stay on the CPU, with their
    values, and lose them only where they meet tensors that have none.
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
    """Height and width that the field counts with.

    They are 800 x 1280 for detectors, a crop four times as wide for segmentors (512 x 2048 and 640 x 2560 in
    the papers of Swin and of RevCol) and a crop for classifiers.

    Raises:
        ValueError: If the config's training data are not cropped.
    """
    if cfg.default_scope == 'mmdet':
        return 800, 1280
    pipeline = cfg.train_dataloader.dataset.get('pipeline', ())
    crops = [
        t.get('crop_size', t.get('scale')) for t in pipeline if t.type in ('RandomCrop', 'RandomResizedCrop')
    ]
    if not crops:
        raise ValueError(f'{cfg.filename}: its training images are not cropped; give an input shape')
    height, width = crops[0] if isinstance(crops[0], (list, tuple)) else (crops[0], crops[0])
    return height, 4 * width if cfg.default_scope == 'mmseg' else width


def count_complexity(cfg: Config, shape: tuple[int, int] | None = None) -> Complexity:
    """Count the parameters and FLOPs of a config's model.

    Of RoI heads every box head sees as many RoIs as the config's RPN keeps, every mask head as many as there
    are detections. Not counted, as usual: RoI pooling, NMS, normalisation, activations, interpolation.

    Args:
        cfg: Config with ``default_scope`` and ``model``.
        shape: Height and width of the input, in pixels. None: :func:`default_shape`.

    Raises:
        ValueError: If the shape is not positive or too small for the model.
    """
    shape = tuple(shape or default_shape(cfg))
    if min(shape) < 1:
        raise ValueError(f'height and width of an input are positive, got {shape[0]} and {shape[1]}')
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
    return Complexity(shape, parameters, +flops)  # without the parts that have none


def _by_part(model: nn.Module, counter: FlopCounterMode) -> Counter[str]:
    """A Counter to which all that is run from now on adds its FLOPs, by the model's parts.

    (The counter's own attribution misses parts of which only children are called.)
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
    """Run what inference runs, but for what has no multiply-accumulates and needs values, such as NMS."""
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
    """Every RoI head of a two-stage detector, with the module that pools its RoIs and their number."""
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
