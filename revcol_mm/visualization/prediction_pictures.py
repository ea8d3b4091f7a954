"""Pictures of predictions beside the ground truth, drawn in validation and testing."""

import math
from copy import copy
from pathlib import Path
from typing import Any, Sequence

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from revcol_mm.data.pipelines import image_loader, innermost_datasets

from .drawable_samples import enlarge, without_empty_segments, without_ignored
from .rgb_picture import reads_bgr, rgb_picture

MAX_NAMES = 40  # classes in a legend
GAP = 12  # pixels between truth and prediction


def draw_beside_truth(
    visualizer: Visualizer, image: np.ndarray, sample: BaseDataElement, **draw_args: Any
) -> np.ndarray:
    """Draw truth and prediction side by side, with captions and, for semantic segmentation, a legend.

    Args:
        visualizer: A visualizer of MMDetection or MMSegmentation without backends.
        image: (H, W, 3), RGB, uint8. It is enlarged if it is small.
        sample: Its data sample. If it has only truth or only a prediction, only that is drawn.
        **draw_args: Arguments of the visualizer's ``add_datasample``.

    Returns:
        The picture, RGB, uint8.
    """
    if 'pred_panoptic_seg' in sample:
        sample = without_empty_segments(sample, len(visualizer.dataset_meta['classes']))
    image, sample = enlarge(image, sample)
    halves = {}
    for name, prefix, other in (('truth', 'gt_', 'draw_pred'), ('prediction', 'pred_', 'draw_gt')):
        if any(field.startswith(prefix) for field in sample.keys()):
            visualizer.add_datasample(name, image, sample, **{other: False}, **draw_args)
            halves[name] = visualizer.get_image()
    return _compose(visualizer, halves, _painted_classes(visualizer, sample))


def _painted_classes(visualizer: Visualizer, sample: BaseDataElement) -> list[tuple[str, Sequence[int]]]:
    """Return name and colour of the most common painted classes, at most :data:`MAX_NAMES`."""
    fields = [sample.get(name) for name in ('gt_sem_seg', 'pred_sem_seg') if name in sample]
    maps = [labels for field in fields for labels in field.values()]  # the key depends on the library
    if not maps:
        return []
    classes, palette = visualizer.dataset_meta['classes'], visualizer.dataset_meta['palette']
    unpainted = getattr(visualizer, 'unpainted', ())
    labels, counts = np.unique(np.concatenate(maps, axis=None), return_counts=True)
    commonest = labels[np.argsort(-counts, kind='stable')].tolist()
    painted = [label for label in commonest if label < len(classes) and classes[label] not in unpainted]
    return [(classes[label], palette[label]) for label in sorted(painted[:MAX_NAMES])]


def _compose(
    visualizer: Visualizer, halves: dict[str, np.ndarray], names: list[tuple[str, Sequence[int]]]
) -> np.ndarray:
    """Place pictures of equal size side by side, with captions above and the legend below."""
    from matplotlib.patches import Patch

    height, width, _ = next(iter(halves.values())).shape
    font_size = max(12, round((height * width) ** 0.5 / 60))  # points
    line = round(2 * font_size * visualizer.dpi / 72)  # pixels
    cell = max(width, 6 * line)  # leaves room for a caption above a narrow picture
    total_width = len(halves) * (cell + GAP) - GAP
    legend_height = 0
    legend = dict(
        handles=[Patch(color=np.divide(colour, 255), label=name) for name, colour in names],
        loc='lower center',
        fontsize=font_size,
        frameon=False,
        borderpad=0,
    )
    if names:
        column = visualizer.ax_save.legend(**legend).get_window_extent()
        column_width = math.ceil(column.width) + line
        total_width = max(total_width, column_width)
        legend['ncols'] = min(len(names), total_width // column_width)
        num_rows = math.ceil(len(names) / legend['ncols'])
        legend_height = math.ceil(column.height * num_rows / len(names)) + line // 2

    picture = np.full((line + height + legend_height, total_width, 3), 255, np.uint8)
    centres = [index * (cell + GAP) + cell // 2 for index in range(len(halves))]
    for centre, half in zip(centres, halves.values()):
        left = centre - width // 2
        picture[line : line + height, left : left + width] = half
    visualizer.set_image(picture)
    visualizer.draw_texts(
        list(halves),
        np.array([(centre, line / 2) for centre in centres]),
        font_sizes=font_size,
        colors='black',
        vertical_alignments='center',
        horizontal_alignments='center',
    )
    if names:
        visualizer.ax_save.legend(**legend)
    return visualizer.get_image()


@HOOKS.register_module()
class PredictionPicturesHook(Hook):
    """Draw predictions beside the ground truth in validation and testing, see :func:`draw_beside_truth`.

    A picture is named ``val_`` or ``test_`` and the name of the image file, and every validation draws the
    same images, so that visualizer backends show how they change during training. (MMDetection's
    DetVisualizationHook names all pictures ``val_img`` and draws other images each time.)

    Args:
        draw: Whether to draw any pictures.
        interval: Draw the images of every ``interval``-th batch, in the main process only.
        **draw_args: Arguments of the visualizer's ``add_datasample``, such as ``pred_score_thr``.
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
        import mmcv.transforms

        visualizer = copy(runner.visualizer)
        visualizer._vis_backends = {}  # add_datasample would store each half
        loop = getattr(runner, f'{mode}_loop', None)
        dataset, transforms = next(innermost_datasets(loop.dataloader.dataset)) if loop else (None, [])
        loader = image_loader(transforms) or mmcv.transforms.LoadImageFromFile()
        for sample in outputs:
            image = rgb_picture(loader(dict(img_path=sample.img_path))['img'], reads_bgr(loader))
            if hasattr(dataset, 'ignore_index'):
                sample = without_ignored(sample, dataset.ignore_index, len(dataset.metainfo['classes']))
            picture = draw_beside_truth(visualizer, image, sample, **self.draw_args)
            runner.visualizer.add_image(f'{mode}_{Path(sample.img_path).name}', picture, runner.iter)
