"""Annotation files are checked while MMDetection reads them, once."""

import pytest
from mmdet.datasets import CocoDataset, CocoPanopticDataset
from mmdet.datasets.api_wrappers import COCO as MMDetectionCOCO
from mmengine.registry import DefaultScope
from pycocotools.coco import COCO

from revcol_mm.data.annotation_files import annotation_files
from revcol_mm.errors import PreflightError
from revcol_mm.preflight import PreflightHook
from revcol_mm.training.runner import ResumableRunner

from .bare_runner import Runner


def test_mmdetection_reads_annotation_files_by_the_constructor_that_is_patched(coco, tmp_path):
    """If this fails, MMDetection reads files in another way, and `annotation_files` has to follow."""
    for cls in (MMDetectionCOCO, CocoDataset.COCOAPI, CocoPanopticDataset.COCOAPI):
        assert issubclass(cls, COCO)
    path, original = str(tmp_path / 'val.json'), COCO.__init__
    with annotation_files() as files:
        assert CocoDataset.COCOAPI(path).dataset['images']
    assert list(files) == [path] and len(files[path].images) == 12
    assert COCO.__init__ is original


def test_a_run_does_not_keep_annotation_files_in_memory(coco, tmp_path):
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = ResumableRunner.build_dataloader(coco.train_dataloader).dataset
    assert list(dataset.annotation_files) == [f'{tmp_path}/train.json']
    PreflightHook().before_run(Runner(dataset, num_classes=2))
    assert not dataset.annotation_files


def test_an_interruption_is_not_replaced_by_findings(tmp_path):
    path = tmp_path / 'bad.json'
    path.write_text('{"images": [], "annotations": [], "categories": []}')

    def read(*errors):
        with annotation_files():
            COCO(str(path))
            for error in errors:
                raise error

    with pytest.raises(PreflightError, match='it has no images'):
        read()
    with pytest.raises(PreflightError, match='it has no images'):
        read(KeyError('images'))  # which the finding explains
    with pytest.raises(KeyboardInterrupt):
        read(KeyboardInterrupt())
