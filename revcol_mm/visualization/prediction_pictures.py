"""Pictures of what a detector or a segmentor predicts beside the truth, by the names of their images."""

import math
from copy import copy
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.visualization import Visualizer

from revcol_mm.data.pipelines import image_loader, innermost_datasets

LEGIBLE_SIDE = 640  # pixels, about, of the longer side of an image, to look at it on a screen
MAX_NAMES = 40  # in a legend
GAP = 12  # pixels between the halves of a picture


def rgb_picture(image: np.ndarray, is_bgr: bool = True) -> np.ndarray:
    """Make a picture of an image of any channels.

    Args:
        image: (H, W) or (H, W, C), of any type of numbers. Of 3 channels and more the first three are shown,
            of one or two the first, in grey. Values beyond 0 to 255, and fractions, as of 16 bits or
            reflectances, are stretched: from the 2nd to the 98th percentile.
        is_bgr: The first three are blue, green and red, as OpenMMLab reads by OpenCV; else red, green, blue.

    Returns:
        (H, W, 3), RGB, uint8.
    """
    image = np.atleast_3d(image)
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, axis=-1)
    if image.dtype != np.uint8:
        image = np.nan_to_num(image.astype(np.float64))
        if image.min() < 0 or image.max() > 255 or image.max() <= 1:
            low, high = np.percentile(image, (2, 98))
            image = 255 * np.clip((image - low) / (high - low or 1), 0, 1)
        image = image.astype(np.uint8)
    return np.ascontiguousarray(image[..., ::-1] if is_bgr else image)


def reads_bgr(loader: Any) -> bool:
    """Whether a transform that reads images gives BGR; those for TIFFs leave channels in the file's order.

    None, as of a data set without files, does.
    """
    return loader is None or getattr(loader, 'imdecode_backend', 'tifffile') != 'tifffile'


def without_ignored(sample: BaseDataElement, ignored: int, num_classes: int) -> BaseDataElement:
    """Give pixels whose true label is ignored one that no class has, which visualizers do not paint.

    Args:
        sample: Its data sample, which stays as it is.
        ignored: The label.
        num_classes: Number of classes; the ignored label may be one of them.
    """
    if 'gt_sem_seg' not in sample or ignored >= num_classes:
        return sample
    field, sample = sample.gt_sem_seg, sample.clone()  # which has the same field
    maps = {key: labels.masked_fill(labels == ignored, num_classes) for key, labels in field.items()}
    sample.set_data(dict(gt_sem_seg=PixelData(metainfo=field.metainfo, **maps)))
    return sample


def without_empty_segments(sample: BaseDataElement, num_classes: int) -> BaseDataElement:
    """Take a panoptic prediction without segments out of a data sample, which stays as it is.

    MMDetection's visualizer fails on it.
    """
    if (sample.pred_panoptic_seg.sem_seg != num_classes).any():
        return sample
    sample = sample.clone()
    del sample.pred_panoptic_seg
    return sample


def enlarge(image: np.ndarray, sample: BaseDataElement) -> tuple[np.ndarray, BaseDataElement]:
    """Enlarge a small image, and what is annotated and predicted on it, so that what is drawn is legible.

    Args:
        image: (H, W, 3), uint8.
        sample: Its data sample, which stays as it is.

    Returns:
        The image, (k H, k W, 3), and a copy of the sample on the CPU, for the integer k from 1 on that brings
        the longer side closest to :data:`LEGIBLE_SIDE`. Pixels of labels and masks are repeated.
    """
    import cv2

    factor = max(1, round(LEGIBLE_SIDE / max(image.shape[:2])))
    sample = sample.cpu()
    if factor == 1:
        return image, sample

    def repeat(pixels: torch.Tensor | np.ndarray) -> torch.Tensor:
        return torch.as_tensor(pixels).repeat_interleave(factor, -2).repeat_interleave(factor, -1)

    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    for name, field in list(sample.items()):
        if isinstance(field, PixelData):
            maps = {key: repeat(pixels) for key, pixels in field.items()}
            sample.set_data({name: PixelData(metainfo=field.metainfo, **maps)})
        elif isinstance(field, InstanceData):
            if 'bboxes' in field:  # MMDetection's boxes may be of a type of its own
                field.bboxes = getattr(field.bboxes, 'tensor', field.bboxes) * factor
            if 'masks' in field:  # and so may its masks
                is_array = isinstance(field.masks, torch.Tensor | np.ndarray)
                field.masks = repeat(field.masks) if is_array else field.masks.resize(image.shape[:2])
    return image, sample


def draw_beside_truth(
    visualizer: Visualizer, image: np.ndarray, sample: BaseDataElement, **draw_args: Any
) -> np.ndarray:
    """Draw truth and prediction side by side, each with its name, and a legend of semantic segmentation.

    Args:
        visualizer: MMDetection's or MMSegmentation's, without backends.
        image: (H, W, 3), RGB, uint8; enlarged if it is small.
        sample: Its data sample. If it has only truth or only a prediction, the other is left out.
        **draw_args: Arguments of the visualizer's ``add_datasample``.

    Returns:
        The picture, RGB.
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
    """Name and colour of the classes of a segmentation, :data:`MAX_NAMES` at most, the commonest ones."""
    fields = [sample.get(name) for name in ('gt_sem_seg', 'pred_sem_seg') if name in sample]
    maps = [labels for field in fields for labels in field.values()]  # MMDetection's key is another one
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
    """Put pictures of one size beside each other, below their captions and above a legend."""
    from matplotlib.patches import Patch

    height, width, _ = next(iter(halves.values())).shape
    font_size = max(12, round((height * width) ** 0.5 / 60))  # points
    line = round(2 * font_size * visualizer.dpi / 72)  # pixels
    cell = max(width, 6 * line)  # there is room for a caption above a narrow picture, too
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
    middles = [index * (cell + GAP) + cell // 2 for index in range(len(halves))]
    for middle, half in zip(middles, halves.values()):
        left = middle - width // 2
        picture[line : line + height, left : left + width] = half
    visualizer.set_image(picture)
    visualizer.draw_texts(
        list(halves),
        np.array([(middle, line / 2) for middle in middles]),
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
    """Draw predictions beside the ground truth in validation and testing.

    MMDetection's DetVisualizationHook calls all pictures ``val_img`` and takes other images each time. Here a
    picture is called ``val_`` or ``test_`` and the name of its file, and validation takes the same images
    each time: a visualizer backend shows how they change. (And MLflow can store it, by the name's suffix.)
    See :func:`draw_beside_truth` for how a picture looks.

    Args:
        draw: Whether to draw any.
        interval: Batches, of those of the first process, from one whose images are drawn to the next.
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
        visualizer._vis_backends = {}  # which would store each half
        loop = getattr(runner, f'{mode}_loop', None)
        dataset, transforms = next(innermost_datasets(loop.dataloader.dataset)) if loop else (None, [])
        loader = image_loader(transforms) or mmcv.transforms.LoadImageFromFile()
        for sample in outputs:
            image = rgb_picture(loader(dict(img_path=sample.img_path))['img'], reads_bgr(loader))
            if hasattr(dataset, 'ignore_index'):
                sample = without_ignored(sample, dataset.ignore_index, len(dataset.metainfo['classes']))
            picture = draw_beside_truth(visualizer, image, sample, **self.draw_args)
            runner.visualizer.add_image(f'{mode}_{Path(sample.img_path).name}', picture, runner.iter)
