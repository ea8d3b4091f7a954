"""The pipelines of ``configs/_base_/ade20k_512x512.py`` for other crop sizes."""

from mmengine.config import ConfigDict

Pipeline = list[ConfigDict]


def pipelines_for_crops(base: ConfigDict, side: int) -> tuple[Pipeline, Pipeline, Pipeline]:
    """Change the pipelines for training, testing and test-time augmentation to another crop size.

    Image scales change in proportion.

    Args:
        base: The config of 512x512 crops, as ``_base_`` in a config. Its pipelines are changed in place.
        side: Height and width of the crops, in pixels.

    Returns:
        The pipelines.
    """
    train_pipeline, test_pipeline, tta_pipeline = base.train_pipeline, base.test_pipeline, base.tta_pipeline
    scale = (4 * side, side)
    train_pipeline[2].update(scale=scale)
    train_pipeline[3].update(crop_size=(side, side))
    test_pipeline[1].update(scale=scale)
    for resize in tta_pipeline[1].transforms[0]:
        resize.update(scale=tuple(length * side // 512 for length in resize.scale))
    return train_pipeline, test_pipeline, tta_pipeline
