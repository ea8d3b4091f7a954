"""Suppression and overlap of boxes (x1, y1, x2, y2), whose width is x2 - x1 + ``offset``."""

import numpy as np
import torch
import torchvision.ops
from torch import Tensor

from .autograd import upcast

NAIVE, LINEAR, GAUSSIAN = range(3)  # MMCV's numbers of soft-NMS's methods


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices (K,) of the boxes (N, 4) that are kept, highest score (N,) first."""
    boxes, scores = upcast(boxes, scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # As a number of the boxes' type: torchvision compares float32 with a float64, which is never the same.
    return torchvision.ops.nms(boxes, scores, boxes.new_tensor(iou_threshold).item())


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
    """Soft-NMS, https://arxiv.org/abs/1704.04503: lower the scores of boxes that overlap a better one.

    Args:
        boxes: (N, 4), on the CPU.
        scores: (N,), likewise.
        dets: Output, (N, 5): in its first K rows the boxes that are kept, with their scores, highest first.
        iou_threshold: Of the methods 'naive' and 'linear'.
        sigma: Of the method 'gaussian'.
        min_score: Boxes below it are dropped.
        method: 0 for 'naive', 1 for 'linear', 2 for 'gaussian'.
        offset: 0 or 1.

    Returns:
        Indices (K,) of the boxes that are kept.
    """
    left, top, right, bottom = sides = upcast(boxes)[0].numpy().T
    areas = (right - left + offset) * (bottom - top + offset)
    # Columns are swapped as the compiled op does, which decides between equal scores.
    columns = np.vstack([sides, upcast(scores)[0].numpy(), areas])
    indices = np.arange(len(areas))
    kept, count = 0, len(areas)
    while kept < count:
        best = kept + _best(columns[4, kept:count])
        columns[:, [kept, best]] = columns[:, [best, kept]]
        indices[[kept, best]] = indices[[best, kept]]
        left, top, right, bottom, _, area = columns[:, kept]
        kept += 1
        lefts, tops, rights, bottoms, lowered, areas = columns[:, kept:count]
        width = np.minimum(right, rights) - np.maximum(left, lefts) + offset
        height = np.minimum(bottom, bottoms) - np.maximum(top, tops) + offset
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(invalid='ignore', divide='ignore'):  # boxes without an area
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


def _best(scores: np.ndarray) -> int:
    """Place of the first of the highest scores. Nothing is higher than a NaN that is the first of all."""
    best = scores.argmax()  # the first NaN, if there is any
    return np.nanargmax(scores) if best and np.isnan(scores[best]) else best


def _fill_gaps(dropped: np.ndarray) -> np.ndarray:
    """Places of what is not dropped, the last ones where the first gaps are."""
    count = len(dropped) - dropped.sum()
    places = np.arange(count)
    places[dropped[:count]] = count + np.flatnonzero(~dropped[count:])[::-1]
    return places


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of boxes with scores (N, 5): each that is kept, and those which it suppresses, best first."""
    boxes, scores = upcast(dets)[0].split([4, 1], dim=1)
    rows = scores[:, 0].argsort(descending=True, stable=True)
    groups = []
    while len(rows):
        ious = _ious(boxes[rows[0]], boxes[rows[1:]], 0)
        matched = ious >= iou_threshold
        groups.append([rows[0].item(), *rows[1:][matched].tolist()])
        rows = rows[1:][~matched]
    return groups


def _ious(boxes1: Tensor, boxes2: Tensor, offset: int, iof: bool = False) -> Tensor:
    """Intersection over union, or over the first boxes' area, of boxes (..., 4) by broadcasting."""
    corner1, corner2 = torch.maximum(boxes1, boxes2)[..., :2], torch.minimum(boxes1, boxes2)[..., 2:]
    overlap = (corner2 - corner1 + offset).clamp(min=0).prod(-1)
    area1, area2 = ((boxes[..., 2:] - boxes[..., :2] + offset).prod(-1) for boxes in (boxes1, boxes2))
    return overlap / (area1 if iof else area1 + area2 - overlap)


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Overlap of boxes (M, 4) and (N, 4), into ``ious``: (M, N), or (M,) if ``aligned``.

    ``mode`` is 0 for intersection over union, 1 for intersection over the first box's area.
    """
    bboxes1, bboxes2 = upcast(bboxes1, bboxes2)
    ious.copy_(_ious(bboxes1 if aligned else bboxes1[:, None], bboxes2, offset, iof=bool(mode)))
