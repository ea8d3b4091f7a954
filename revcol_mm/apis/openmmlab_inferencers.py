"""OpenMMLab's inferencers for a model that has been built and loaded.

MMEngine's build the model from a config and a checkpoint, which would read the checkpoint without the
checks of :func:`revcol_mm.apis.init_model`.
"""

import copy
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel

from revcol_mm.data.pipelines import reads_images, transform_name


def is_image_loader(step: dict) -> bool:
    """Return whether a pipeline step of a config reads images."""
    return reads_images(transform_name(step))


def for_arrays(cfg: Config) -> Config:
    """Return a copy of a config with LoadImageFromFile, which inferencers replace to take arrays."""
    cfg = copy.deepcopy(Config(dict(cfg), filename=cfg.filename))
    dataset = cfg.test_dataloader.dataset
    dataset.pipeline = [
        dict(type='LoadImageFromFile') if is_image_loader(step) else step for step in dataset.pipeline
    ]
    return cfg


class _BuiltModel:
    """Mixin that makes an inferencer of MMEngine use a given model."""

    def __init__(self, model: BaseModel, visualizer: str) -> None:
        self._built = model
        cfg = for_arrays(model.cfg)
        # Without backends, since these would write event files.
        cfg.visualizer = ConfigDict(cfg.get('visualizer') or dict(type=visualizer), vis_backends=None)
        super().__init__(cfg)  # type: ignore[call-arg]  # a mixin: the inferencer's

    def _init_model(self, *_: Any) -> BaseModel:
        """Override MMEngine's method, which builds a model."""
        return self._built


def mmengine_inferencer(base: type, model: BaseModel, visualizer: str) -> Any:
    """Build an inferencer of MMDetection or MMSegmentation.

    Args:
        base: Its class.
        model: The model, as :func:`revcol_mm.apis.init_model` returns it.
        visualizer: Type of the visualizer if the config has none.
    """
    return type(base.__name__, (_BuiltModel, base), {})(model, visualizer)


def mmpretrain_inferencer(base: type, model: BaseModel, classes: tuple[str, ...]) -> Any:
    """Build an inferencer of MMPretrain.

    Args:
        base: Its class.
        model: The model, as :func:`revcol_mm.apis.init_model` returns it.
        classes: Names of its classes.
    """
    model._config = for_arrays(model.cfg)  # attribute from which MMPretrain's inferencers take the config
    return base(model, classes=classes)
