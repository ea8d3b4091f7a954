"""Semantic segmentation painted over a photograph, which stays as it is where there is only background.

MMSegmentation is imported with this file: a config that uses it names it in its ``custom_imports``.
"""

from typing import Any, Sequence

import numpy as np
from mmengine.registry import VISUALIZERS
from mmengine.structures import PixelData
from mmseg.visualization import SegLocalVisualizer


@VISUALIZERS.register_module()
class SegmentationVisualizer(SegLocalVisualizer):
    """MMSegmentation's visualizer, but for the background, which is neither painted nor named.

    Args:
        name: Of this instance, see MMEngine's ManagerMixin.
        unpainted: Names of the classes that are background.
        **kwargs: Arguments of :class:`mmseg.visualization.SegLocalVisualizer`, such as ``alpha``, opacity.
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
        no_class = len(classes)  # MMSegmentation gives it no name and only darkens it
        others = PixelData(data=np.where(background, no_class, labels))
        drawn = super()._draw_sem_seg(image, others, classes, palette, with_labels)
        darkened = (drawn == (image * (1 - self.alpha)).astype(np.uint8)).all(-1)
        # where it is not darkened, another class's name is written across it
        drawn = np.where((background[0] & darkened)[..., None], image, drawn)
        self.set_image(drawn)
        return drawn
