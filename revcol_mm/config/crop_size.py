"""The ADE20K recipe of ``configs/_base_/ade20k_512x512.py`` for other crop sizes."""

from typing import Any

from mmengine.config import ConfigDict


def with_crop_size(base: ConfigDict, side: int) -> dict[str, Any]:
    """Return the settings of ``ade20k_512x512.py`` that depend on the crop size, for another size.

    Image scales grow in proportion. Call it in a config: ``globals().update(with_crop_size(_base_, 640))``.

    Args:
        base: The config of 512x512 crops. Its pipelines are changed in place.
        side: Height and width of the crops, in pixels.
    """
    train_pipeline, test_pipeline, tta_pipeline = base.train_pipeline, base.test_pipeline, base.tta_pipeline
    crop_size, scale = (side, side), (4 * side, side)
    train_pipeline[2].update(scale=scale)
    train_pipeline[3].update(crop_size=crop_size)
    test_pipeline[1].update(scale=scale)
    for resize in tta_pipeline[1].transforms[0]:
        resize.update(scale=tuple(length * side // 512 for length in resize.scale))
    return dict(
        crop_size=crop_size,
        scale=scale,
        data_preprocessor=dict(size=crop_size),
        train_pipeline=train_pipeline,
        test_pipeline=test_pipeline,
        tta_pipeline=tta_pipeline,
        train_dataloader=dict(dataset=dict(pipeline=train_pipeline)),
        val_dataloader=dict(dataset=dict(pipeline=test_pipeline)),
        test_dataloader=dict(dataset=dict(pipeline=test_pipeline)),
    )
