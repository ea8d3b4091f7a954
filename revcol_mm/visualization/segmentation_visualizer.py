"""Draw a semantic segmentation over an image and leave the background as it is.

This file imports MMSegmentation, so a config that uses it names it in ``custom_imports``.
"""

from typing import Any, Sequence

import numpy as np
from mmengine.registry import VISUALIZERS
from mmengine.structures import PixelData
from mmseg.visualization import SegLocalVisualizer


@VISUALIZERS.register_module()
class SegmentationVisualizer(SegLocalVisualizer):
    """MMSegmentation's visualizer, except that background classes are neither painted nor labelled.

    Args:
        name: Name of the instance, see MMEngine's ManagerMixin.
        unpainted: Names of the background classes.
        **kwargs: Arguments of :class:`mmseg.visualization.SegLocalVisualizer`, such as the opacity ``alpha``.
    """

    def __init__(
        self, name: str = 'visualizer', unpainted: Sequence[str] = ('background',), **kwargs: Any
    ) -> None:
        super().__init__(name, **kwargs)
        self.unpainted = unpainted

    def _draw_sem_seg(
        self,
        image: np.ndarray,
        sem_seg: PixelData,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        with_labels: bool = True,
    ) -> np.ndarray:
        labels = np.asarray(sem_seg.cpu().data).astype(int)  # (1, H, W)
        background = np.isin(labels, [i for i, name in enumerate(classes) if name in self.unpainted])
        # MMSegmentation only darkens pixels whose label is no class.
        others = PixelData(data=np.where(background, len(classes), labels))
        drawn = super()._draw_sem_seg(image, others, classes, palette, with_labels)
        darkened = (drawn == (image * (1 - self.alpha)).astype(np.uint8)).all(-1)
        # Background pixels that are not darkened belong to the name of another class, which is kept.
        drawn = np.where((background[0] & darkened)[..., None], image, drawn)
        self.set_image(drawn)
        return drawn
