"""MMCV's ops against slow loops on random inputs drawn by hypothesis.

Among them are empty sets of boxes, equal boxes, regions outside the image and odd sizes.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('hypothesis')
from hypothesis import given, settings
from hypothesis import strategies as st

from .data.make_mmcv_ops import OPS, Case, compute
from .mmcv_ops_references import REFERENCES
from .test_mmcv_ops import assert_near, supplied

few_examples = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@st.composite
def box_sets(draw, equal_scores=False):
    """Draw boxes with coordinates that float32 represents exactly, and scores; some are equal or empty."""
    sides = st.tuples(*[st.integers(-8, 24)] * 2, *[st.integers(-1, 12)] * 2)
    boxes = draw(st.lists(sides, max_size=8))
    boxes += draw(st.lists(st.sampled_from(boxes), max_size=3)) if boxes else []
    boxes = torch.tensor([[x, y, x + width, y + height] for x, y, width, height in boxes]).view(-1, 4) / 2
    scores = st.lists(st.integers(0, 16), min_size=len(boxes), max_size=len(boxes), unique=not equal_scores)
    return boxes, torch.tensor(draw(scores)) / 16


def overlap(box, other, offset=0, mode='iou'):
    """Compute the overlap in float32, like the compiled op; NaN for boxes without area."""
    width = min(box[2], other[2]) - max(box[0], other[0]) + offset
    height = min(box[3], other[3]) - max(box[1], other[1]) + offset
    areas = [(each[2] - each[0] + offset) * (each[3] - each[1] + offset) for each in (box, other)]
    shared = max(width, 0) * max(height, 0)
    with np.errstate(all='ignore'):
        return np.float32(shared) / np.float32(sum(areas) - shared if mode == 'iou' else areas[0])


THRESHOLDS = st.sampled_from([0.3, 0.5, 0.6, 0.7])


@few_examples
@given(box_sets(), THRESHOLDS, st.integers(0, 1))
def test_nms_and_nms_match_equal_a_loop(boxes_and_scores, threshold, offset):
    boxes, scores = boxes_and_scores
    kept, groups, rows, float32 = [], [], boxes.tolist(), np.float32(threshold)
    for index in sorted(range(len(boxes)), key=lambda index: -scores[index]):
        if not any(overlap(rows[other], rows[index], offset) > float32 for other in kept):
            kept.append(index)
        for group in groups:
            if overlap(rows[group[0]], rows[index]) >= float32:
                group.append(index)
                break
        else:
            groups.append([index])
    dets, indices = OPS.nms(boxes, scores, threshold, offset)
    assert indices.tolist() == kept
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])
    matched = OPS.nms_match(torch.cat([boxes, scores[:, None]], 1), threshold)
    assert [group.tolist() for group in matched] == groups


@few_examples
@given(box_sets(equal_scores=True), THRESHOLDS, st.integers(0, 1))
def test_nms_drops_exactly_the_boxes_that_overlap_a_kept_one(boxes_and_scores, threshold, offset):
    boxes, scores = boxes_and_scores
    kept, rows = OPS.nms(boxes, scores, threshold, offset)[1].tolist(), boxes.tolist()
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)
    for index, row in enumerate(rows):
        drops = [
            other
            for other in kept
            if overlap(rows[other], row, offset) > np.float32(threshold) and other != index
        ]
        assert any(scores[other] >= scores[index] for other in drops) == (index not in kept)


@few_examples
@given(
    box_sets(equal_scores=True),
    THRESHOLDS,
    st.integers(0, 1),
    st.sampled_from(['naive', 'linear', 'gaussian']),
    st.sampled_from([0.01, 0.2]),
)
def test_soft_nms_equals_a_loop(boxes_and_scores, threshold, offset, method, min_score):
    """The loop follows ``softnms_cpu`` in ``nms.cpp``, including the order of boxes with equal scores."""
    boxes, scores = boxes_and_scores
    rows = [
        [*box, np.float32(score), i]
        for i, (*box, score) in enumerate(torch.cat([boxes, scores[:, None]], 1).tolist())
    ]
    first = 0
    while first < len(rows):
        best = first
        for place in range(first + 1, len(rows)):
            if rows[best][4] < rows[place][4]:
                best = place
        rows[first], rows[best] = rows[best], rows[first]
        place = first = first + 1
        while place < len(rows):
            iou = overlap(rows[first - 1], rows[place], offset)
            if method == 'gaussian':
                rows[place][4] *= np.exp(-(iou * iou) / np.float32(0.5))
            elif iou >= np.float32(threshold):
                rows[place][4] *= 0 if method == 'naive' else 1 - iou
            if rows[place][4] < np.float32(min_score):
                rows[place] = rows[-1]
                rows.pop()
            else:
                place += 1
    dets, indices = OPS.soft_nms(boxes, scores, threshold, 0.5, min_score, method, offset)
    expected = torch.tensor([row[:5] for row in rows], dtype=torch.float32).view(-1, 5)
    assert indices.tolist() == [row[5] for row in rows]
    torch.testing.assert_close(dets, expected, equal_nan=True)


@few_examples
@given(box_sets(), box_sets(), st.sampled_from(['iou', 'iof']), st.integers(0, 1))
def test_bbox_overlaps_equal_a_loop(boxes, others, mode, offset):
    (boxes, _), (others, _) = boxes, others
    expected = [[overlap(box, other, offset, mode) for other in others.tolist()] for box in boxes.tolist()]
    expected = torch.tensor(expected, dtype=torch.float32).view(len(boxes), len(others))
    torch.testing.assert_close(
        OPS.bbox_overlaps(boxes, others, mode, offset=offset), expected, equal_nan=True
    )
    number = min(len(boxes), len(others))
    pairs = OPS.bbox_overlaps(boxes[:number], others[:number], mode, aligned=True, offset=offset)
    torch.testing.assert_close(pairs, expected.diagonal(), equal_nan=True)


@st.composite
def regions(draw):
    """Draw a feature shape, and RoIs without samples exactly at a border, where pooling is discontinuous."""
    features = (2, draw(st.integers(1, 2)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    sides = st.tuples(st.integers(0, 1), *[st.integers(-20, 20)] * 2, *[st.integers(0, 30)] * 2)
    rois = [
        [image, x / 2 + 0.137, y / 2 + 0.149, (x + width) / 2 + 0.137, (y + height) / 2 + 0.149]
        for image, x, y, width, height in draw(st.lists(sides, min_size=1, max_size=3))
    ]
    return dict(features=features, rois=rois)


POOLING = st.tuples(st.sampled_from([0, 2]), st.sampled_from(['avg', 'max']), st.booleans())


@few_examples
@given(regions(), POOLING)
def test_roi_align_equals_a_loop(inputs, options):
    case = Case(lambda ops, features, rois: ops.roi_align(features, rois, (2, 3), 0.5, *options), inputs)
    assert_near(*(compute('regions', case, ops=ops) for ops in (OPS, REFERENCES)), 1e-10, 1e-10)


@supplied
@few_examples
@given(regions())
def test_roi_pool_equals_a_loop(inputs):
    case = Case(lambda ops, features, rois: ops.roi_pool(features, rois, (2, 3), 0.5), inputs)
    assert_near(*(compute('regions', case, ops=ops) for ops in (OPS, REFERENCES)), 1e-12, 1e-12)


@few_examples
@given(st.integers(1, 2), st.integers(0, 2), st.integers(1, 2), st.sampled_from([1, 2, 4]), st.integers(5, 7))
def test_deformable_convolution_without_offsets_equals_convolution(stride, padding, dilation, groups, size):
    x, weight, bias = torch.randn(2, 4, size, 6), torch.randn(8, 4 // groups, 3, 2), torch.randn(8)
    expected = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    still = torch.zeros(2, groups * 12, *expected.shape[2:])
    geometry = stride, padding, dilation, groups, groups
    torch.testing.assert_close(OPS.deform_conv2d(x, still, weight, *geometry) + bias[:, None, None], expected)
    mask = torch.full((2, groups * 6, *expected.shape[2:]), 0.5)
    output = OPS.modulated_deform_conv2d(x, still, mask, weight * 2, bias, *geometry)
    torch.testing.assert_close(output, expected)
