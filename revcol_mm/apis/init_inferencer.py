"""Building an inferencer from a config and a checkpoint."""

from pathlib import Path

from mmengine.config import Config

from revcol_mm.config.command_line import read_config
from revcol_mm.export.exported_file import is_exported

from .exported_model import ExportedModel
from .inferencer import Inferencer
from .init_model import init_model
from .task_inferencers import (
    ClassificationInferencer,
    DetectionInferencer,
    PanopticInferencer,
    SegmentationInferencer,
)
from .tiles import Tiling

INFERENCERS: dict[str, type[Inferencer]] = {
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
    """Build the inferencer of a config's task.

    Args:
        config, checkpoint, device: See :func:`init_model`, whose errors it also raises. The checkpoint may be
            an ONNX or torch.export file of ``revcol export``; then the model is not built.
        score_threshold: Smallest score of a detection or class, 0 to 1. None: 0.3 for detection, 0 for
            classification. Not for semantic and panoptic segmentation.
        top_k: Largest number of classes of an image, for classification. None: 5.
        tile: Height and width of tiles, in pixels of the image, whose predictions are merged; for detection
            and semantic segmentation. Each tile goes through the test pipeline as if it were an image.
            None: predict on whole images.
        overlap: Smallest number of pixels that neighbouring tiles share. None: an eighth of a tile.

    Raises:
        ValueError: If an option is out of range or not for this task; see also :class:`Inferencer`.

    Examples:
        >>> inferencer = init_inferencer('configs/dino_revcol_t_coco.py', 'epoch_12.pth')
        >>> image = inferencer.read('street.jpg')
        >>> samples = inferencer.predict([image])
        >>> records, (picture,) = inferencer.records(samples[0]), inferencer.draw([image], samples)
    """
    if score_threshold is not None and not 0 <= score_threshold <= 1:
        raise ValueError(f'the score threshold must be from 0 to 1, got {score_threshold}')
    if top_k is not None and top_k < 1:
        raise ValueError(f'top k must be at least 1, got {top_k}')
    cfg = read_config(config)
    kind = _inferencer_of(cfg)
    options = dict(score_threshold=score_threshold, top_k=top_k)
    options = {name: value for name, value in options.items() if value is not None}
    for name in options:
        if name not in kind.options:
            raise ValueError(f'{kind.task} has no {name.replace("_", " ")}')
    if overlap is not None and tile is None:
        raise ValueError('an overlap needs a tile size')
    tiling = None if tile is None else Tiling(tile, max(tile, 0) // 8 if overlap is None else overlap)
    if tiling and kind.tile_merger is None:
        raise ValueError(f'tiles are only for detection and semantic segmentation, not for {kind.task}')
    model = ExportedModel(cfg, checkpoint, device) if is_exported(checkpoint) else None
    inferencer = kind(model or init_model(cfg, checkpoint, device), **options)
    inferencer.tiling = tiling
    return inferencer
