"""Non-maximum suppression and overlap of boxes (x1, y1, x2, y2).

The width of a box is x2 - x1 + ``offset``, its height y2 - y1 + ``offset``; MMCV passes 0 or 1.
"""

import numpy as np
import torch
import torchvision.ops
from torch import Tensor

from .autograd import upcast

NAIVE, LINEAR, GAUSSIAN = range(3)  # MMCV's numbers of the soft-NMS methods


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices (K,) of the boxes (N, 4) that NMS keeps, in descending order of ``scores`` (N,)."""
    boxes, scores = upcast(boxes, scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # Round the threshold to the boxes' dtype, as the compiled op does: torchvision would compare float32
    # overlaps with a float64 threshold.
    return torchvision.ops.nms(boxes, scores, torch.tensor(iou_threshold, dtype=boxes.dtype).item())


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Apply soft-NMS (https://arxiv.org/abs/1704.04503): lower the scores of boxes that overlap a better one.

    Args:
        boxes: (N, 4), on the CPU.
        scores: (N,), on the CPU.
        dets: Output, (N, 5). Its first K rows receive the kept boxes and their new scores, best first.
        iou_threshold: Boxes that overlap at least this much are changed; for 'naive' and 'linear'.
        sigma: Width of the Gaussian; for 'gaussian'.
        min_score: Boxes whose score falls below this are dropped.
        method: 0 for 'naive', 1 for 'linear', 2 for 'gaussian'.
        offset: See the module.

    Returns:
        Indices (K,) of the kept boxes.
    """
    left, top, right, bottom = sides = upcast(boxes)[0].numpy().T
    areas = (right - left + offset) * (bottom - top + offset)
    # One column per box. Columns are swapped in the same way as in the compiled op, because their order
    # decides which of several boxes with equal scores comes first.
    columns = np.vstack([sides, upcast(scores)[0].numpy(), areas])
    indices = np.arange(len(areas))
    kept, count = 0, len(areas)
    while kept < count:
        best = kept + _argmax(columns[4, kept:count])
        columns[:, [kept, best]] = columns[:, [best, kept]]
        indices[[kept, best]] = indices[[best, kept]]
        left, top, right, bottom, _, area = columns[:, kept]
        kept += 1
        lefts, tops, rights, bottoms, lowered, areas = columns[:, kept:count]
        width = np.minimum(right, rights) - np.maximum(left, lefts) + offset
        height = np.minimum(bottom, bottoms) - np.maximum(top, tops) + offset
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(invalid='ignore', divide='ignore'):  # Boxes may have no area.
            iou = overlap / (area + areas - overlap)
        if method == GAUSSIAN:
            lowered *= np.exp(-(iou**2) / sigma)
        else:
            lowered *= np.where(iou >= iou_threshold, 1 - iou if method == LINEAR else 0, 1)
        dropped = lowered < min_score
        if dropped.any():
            rest = kept + _fill_gaps(dropped)
            count = kept + len(rest)
            columns[:, kept:count], indices[kept:count] = columns[:, rest], indices[rest]
    dets[:count] = torch.from_numpy(columns[:5, :count].T)
    return torch.from_numpy(indices[:count])


def _argmax(scores: np.ndarray) -> int:
    """Return the index of the first highest score; 0 if the first score is NaN, as in the compiled op."""
    best = scores.argmax()  # the first NaN, if there is one
    return np.nanargmax(scores) if best and np.isnan(scores[best]) else best


def _fill_gaps(dropped: np.ndarray) -> np.ndarray:
    """Return the indices of the boxes that stay, with the last ones moved to where the first were dropped."""
    count = len(dropped) - dropped.sum()
    places = np.arange(count)
    places[dropped[:count]] = count + np.flatnonzero(~dropped[count:])[::-1]
    return places


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group boxes with scores (N, 5): each group is a kept box and the boxes it suppresses, best first."""
    boxes, scores = upcast(dets)[0].split([4, 1], dim=1)
    rows = scores[:, 0].argsort(descending=True, stable=True)
    groups = []
    while len(rows):
        matched = _overlaps(boxes[rows[0]], boxes[rows[1:]], 0) >= iou_threshold
        groups.append([rows[0].item(), *rows[1:][matched].tolist()])
        rows = rows[1:][~matched]
    return groups


def _overlaps(boxes1: Tensor, boxes2: Tensor, offset: int, iof: bool = False) -> Tensor:
    """Divide the intersection of boxes (..., 4) by their union, or by the first box's area if ``iof``."""
    corner1, corner2 = torch.maximum(boxes1, boxes2)[..., :2], torch.minimum(boxes1, boxes2)[..., 2:]
    overlap = (corner2 - corner1 + offset).clamp(min=0).prod(-1)
    area1, area2 = ((boxes[..., 2:] - boxes[..., :2] + offset).prod(-1) for boxes in (boxes1, boxes2))
    return overlap / (area1 if iof else area1 + area2 - overlap)


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Write the overlap of boxes (M, 4) and (N, 4) into ``ious``, (M, N), or (M,) if ``aligned``.

    Args:
        bboxes1: (M, 4).
        bboxes2: (N, 4).
        ious: Output.
        mode: 0 for intersection over union, 1 for intersection over the first box's area.
        aligned: Compare the boxes in pairs; then M equals N.
        offset: See the module.
    """
    bboxes1, bboxes2 = upcast(bboxes1, bboxes2)
    ious.copy_(_overlaps(bboxes1 if aligned else bboxes1[:, None], bboxes2, offset, iof=bool(mode)))
