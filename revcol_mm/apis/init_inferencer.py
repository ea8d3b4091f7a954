"""From a config and a checkpoint to what predicts on images."""

from pathlib import Path

from mmengine.config import Config

from revcol_mm.config.command_line import read_config

from .exported_model import ExportedModel, is_exported
from .inferencer import Inferencer
from .init_model import init_model
from .task_inferencers import (
    ClassificationInferencer,
    DetectionInferencer,
    PanopticInferencer,
    SegmentationInferencer,
)
from .tiles import Tiling

INFERENCERS = {
    'mmdet': DetectionInferencer,
    'mmseg': SegmentationInferencer,
    'mmpretrain': ClassificationInferencer,
}


def _inferencer_of(cfg: Config) -> type[Inferencer]:
    if 'panoptic_fusion_head' in cfg.model and (cfg.model.get('test_cfg') or {}).get('panoptic_on', True):
        return PanopticInferencer
    return INFERENCERS[cfg.default_scope]


def init_inferencer(
    config: str | Path | Config,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    score_threshold: float | None = None,
    top_k: int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
) -> Inferencer:
    """Build what predicts on images for a config's task.

    Args:
        config, checkpoint, device: See :func:`init_model`, whose errors it raises as well. The checkpoint may
            also be a file of tools/export.py, of ONNX or torch.export; the model is not built then.
        score_threshold: Lowest score of a detection or a class that counts, 0 to 1. None: 0.3 for detection,
            0 for classification. Segmentation, semantic or panoptic, has none.
        top_k: How many classes of an image count at most, for classification. None: 5.
        tile: Predict on tiles of this height and width, in pixels of the image, and put them together; for
            detection and semantic segmentation. Each goes through the config's test pipeline, as if it were
            an image. None: on images as wholes.
        overlap: Pixels, at least, that neighbouring tiles share. None: an eighth of a tile.

    Raises:
        ValueError: If an option is out of range or not for this task, or see :class:`Inferencer`.

    Examples:
        >>> inferencer = init_inferencer('configs/dino_revcol_t_coco.py', 'iter_90000.pth')
        >>> image = inferencer.read('street.jpg')
        >>> samples = inferencer.predict([image])
        >>> records, (picture,) = inferencer.records(samples[0]), inferencer.draw([image], samples)
    """
    if score_threshold is not None and not 0 <= score_threshold <= 1:
        raise ValueError(f'a score threshold is from 0 to 1, got {score_threshold}')
    if top_k is not None and top_k < 1:
        raise ValueError(f'top k starts at 1, got {top_k}')
    cfg = config if isinstance(config, Config) else read_config(config)
    kind = _inferencer_of(cfg)
    options = dict(score_threshold=score_threshold, top_k=top_k)
    options = {name: value for name, value in options.items() if value is not None}
    for name in options:
        if name not in kind.options:
            raise ValueError(f'{kind.task} has no {name.replace("_", " ")}')
    if overlap is not None and tile is None:
        raise ValueError('an overlap is of tiles: give their size, too')
    tiling = None if tile is None else Tiling(tile, max(tile, 0) // 8 if overlap is None else overlap)
    if tiling and kind.tile_merger is None:
        raise ValueError('tiles are for detection and semantic segmentation')
    model = ExportedModel(cfg, checkpoint, device) if is_exported(checkpoint) else None
    inferencer = kind(model or init_model(cfg, checkpoint, device), **options)
    inferencer.tiling = tiling
    return inferencer
