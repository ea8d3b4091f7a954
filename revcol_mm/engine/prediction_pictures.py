"""Pictures of what a detector predicts, by the names of their images."""

from pathlib import Path
from typing import Any, Sequence

from mmengine.dist import master_only
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class PredictionPicturesHook(Hook):
    """Draw predictions beside the ground truth in validation and testing.

    MMDetection's DetVisualizationHook calls all pictures ``val_img`` and takes other images each time. Here a
    picture is called ``val_`` or ``test_`` and the name of its file, and validation takes the same images
    each time: a visualizer backend shows how they change. (And MLflow can store it, by the name's suffix.)

    Args:
        draw: Whether to draw any.
        interval: Batches, of those of the first process, from one whose images are drawn to the next.
        draw_args: Arguments of the visualizer's ``add_datasample``, such as ``pred_score_thr``.
    """

    def __init__(self, draw: bool = True, interval: int = 50, **draw_args: Any) -> None:
        self.draw = draw
        self.interval = interval
        self.draw_args = draw_args

    @master_only
    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
        mode: str = 'val',
    ) -> None:
        if mode == 'train' or not self.draw or not self.every_n_inner_iters(batch_idx, self.interval):
            return
        import mmcv

        for sample in outputs:
            image = mmcv.imfrombytes(get(sample.img_path), channel_order='rgb')
            name = f'{mode}_{Path(sample.img_path).name}'
            runner.visualizer.add_datasample(
                name, image, data_sample=sample, step=runner.iter, **self.draw_args
            )
