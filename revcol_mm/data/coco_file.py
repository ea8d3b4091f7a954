"""Contents and problems of an annotation file in COCO's format."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .findings import Finding


@dataclass
class CocoFile:
    """Contents of an annotation file, and its problems, grouped by the uses of the file that they affect.

    Args:
        path: Path of the file.
        images: File name, width and height by image id.
        names: Category names by id, in the order of the file, which is the order of MMDetection's labels.
        num_objects: Number of objects by category id.
        segments: Segment ids by image id, of a panoptic file; otherwise None.
        findings: Problems that affect every use.
        box_findings: Problems of boxes, in training and evaluation.
        mask_findings: Problems of segmentations, in training on masks.
        evaluated_mask_findings: The same problems with their severity in the evaluation of masks.
    """

    path: str
    images: dict[Any, tuple[str, float, float]] = field(default_factory=dict)
    names: dict[Any, str] = field(default_factory=dict)
    num_objects: Counter = field(default_factory=Counter)
    segments: dict[Any, frozenset[int]] | None = None
    findings: list[Finding] = field(default_factory=list)
    box_findings: list[Finding] = field(default_factory=list)
    mask_findings: list[Finding] = field(default_factory=list)
    evaluated_mask_findings: list[Finding] = field(default_factory=list)
