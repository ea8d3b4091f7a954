"""Memory stays constant in long runs and large data sets: run by `python -m pytest -m reliability`."""

import json
import re
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from revcol_mm.apis import init_model

from .subprocesses import REPO, run

pytestmark = pytest.mark.reliability
NUM_IMAGES = 5000
LOADER = ('batch_size=4', 'num_workers=1', 'persistent_workers=False')
WATCH = 'tools/analysis/watch_run.py'

# A detector that returns the ground truth with noise: it needs no training and has an AP between 0 and 1.
ORACLE = """
import torch
from mmdet.models.detectors import BaseDetector
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

@MODELS.register_module()
class Oracle(BaseDetector):
    def __init__(self, data_preprocessor):
        super().__init__(data_preprocessor)
        self.noise = torch.nn.Parameter(torch.tensor(2.0))
    def loss(self, inputs, data_samples): ...
    def extract_feat(self, inputs): ...
    def _forward(self, inputs, data_samples): ...
    def predict(self, inputs, data_samples, rescale=True):
        for sample in data_samples:
            generator = torch.Generator().manual_seed(sample.img_id)
            truth = sample.gt_instances
            boxes = truth.bboxes.tensor if hasattr(truth.bboxes, 'tensor') else truth.bboxes
            boxes = boxes + self.noise.detach() * torch.randn(boxes.shape, generator=generator)
            scores = torch.rand(len(boxes), generator=generator)
            labels = torch.where(scores < 0.1, (truth.labels + 1) % 10, truth.labels)
            sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        return data_samples
"""


def watched(tmp_path, *command, **env):
    """Run a command; return its output and each quantity in the second and the last fifth of the time.

    Only the time with data-loader workers counts: pycocotools' evaluation afterwards takes memory once.
    """
    printed = run(
        WATCH, '--interval', 0.5, '--out', tmp_path / 'watch', '--', sys.executable, *command, **env
    )
    samples = json.loads((tmp_path / 'watch/watch_run.json').read_text())
    working = [sample for sample in samples if sample['workers']]
    return printed, runpy.run_path(str(REPO / WATCH))['changes'](working)


def assert_memory_is_constant(changes, margin):
    before, after = changes['memory']
    assert after <= before + margin, f'memory grew from {before:.0f} to {after:.0f} MiB'


def test_2000_iterations_take_constant_memory_threads_and_files(sample_data, tmp_path):
    loader = [f'dataset.data_root={sample_data / "ade20k"}', 'num_workers=1', 'persistent_workers=True']
    _, changes = watched(
        tmp_path,
        *(
            'tools/train.py',
            'configs/upernet_revcol_nano_sample.py',
            '--work-dir',
            tmp_path / 'run',
            '--cfg-options',
        ),
        *(f'{split}_dataloader.{option}' for split in ('train', 'val') for option in loader),
        *('train_dataloader.batch_size=2', 'train_cfg.max_iters=2000', 'train_cfg.val_interval=200'),
        'default_hooks.checkpoint.interval=100',
    )
    assert_memory_is_constant(changes, margin=40)
    for name in ('threads', 'files', 'workers'):
        assert abs(changes[name][1] - changes[name][0]) <= 2, (name, changes[name])
    checkpoints = sorted(path.name for path in (tmp_path / 'run').glob('*.pth'))
    assert len([name for name in checkpoints if name.startswith('iter_')]) == 3  # max_keep_ckpts
    assert len([name for name in checkpoints if name.startswith('best_')]) == 1


def test_miou_of_5000_images_equals_numpy(tmp_path):
    generator = np.random.default_rng(0)
    root = tmp_path / 'ade20k'
    for kind in ('images', 'annotations'):
        (root / kind / 'validation').mkdir(parents=True)
    for number in range(NUM_IMAGES):
        labels = np.kron(generator.integers(0, 12, (4, 4)), np.ones((16, 16), int)).astype(np.uint8)
        image = (labels * 20)[..., None] + generator.integers(0, 16, (64, 64, 3))
        cv2.imwrite(str(root / f'images/validation/{number:05}.jpg'), image)
        cv2.imwrite(str(root / f'annotations/validation/{number:05}.png'), labels)
    config = REPO / 'configs/upernet_revcol_nano_sample.py'
    options = [
        f'test_dataloader.dataset.data_root={root}',
        'test_dataloader.dataset.pipeline.1.scale=(64,64)',
        *(f'test_dataloader.{option}' for option in LOADER),
        'model.test_cfg.mode=whole',
    ]
    torch.manual_seed(0)
    model = init_model(config)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'random.pth')
    printed, changes = watched(
        tmp_path,
        *('tools/test.py', config, tmp_path / 'random.pth'),
        *('--work-dir', tmp_path / 'run', '--out', tmp_path / 'predictions', '--cfg-options', *options),
    )
    confusion = np.zeros((11, 11), np.int64)
    for number in range(NUM_IMAGES):
        truth = cv2.imread(str(root / f'annotations/validation/{number:05}.png'), cv2.IMREAD_UNCHANGED)
        predicted = cv2.imread(str(tmp_path / f'predictions/{number:05}.png'), cv2.IMREAD_UNCHANGED)
        counted = truth > 0
        confusion += np.bincount(
            (truth[counted] - 1) * 11 + (predicted[counted].astype(int) - 1), minlength=121
        ).reshape(11, 11)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    iou = confusion.diagonal()[union > 0] / union[union > 0]
    assert 0 < iou.mean() < 1
    assert float(re.findall(r'^mIoU +([\d.]+)', printed, re.M)[-1]) == pytest.approx(
        100 * iou.mean(), abs=0.006
    )
    assert_memory_is_constant(changes, margin=40)


def test_ap_of_5000_images_equals_pycocotools(tmp_path):
    generator = np.random.default_rng(0)
    folder = tmp_path / 'coco/val2017'
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, NUM_IMAGES + 1):
        images.append(dict(id=number, file_name=f'{number}.jpg', width=64, height=64))
        cv2.imwrite(str(folder / f'{number}.jpg'), generator.integers(0, 255, (64, 64, 3)))
        for _ in range(generator.integers(0, 6)):
            x, y = generator.integers(0, 40, 2).tolist()
            width, height = generator.integers(8, 24, 2).tolist()
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number,
                    category_id=int(generator.integers(1, 11)),
                    bbox=[x, y, width, height],
                    area=width * height,
                    iscrowd=0,
                )
            )
    ann_file = tmp_path / 'coco/annotations/instances_val2017.json'
    ann_file.parent.mkdir()
    categories = [dict(id=number + 1, name=str(number)) for number in range(10)]
    ann_file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    (tmp_path / 'oracle.py').write_text(ORACLE)
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = '{REPO}/configs/dino_revcol_nano_sample.py'\n"
        "custom_imports = dict(imports=['revcol_mm', 'oracle'])\n"
        "model = dict(_delete_=True, type='Oracle', data_preprocessor=_base_.data_preprocessor)\n"
        f"test_dataloader = dict({', '.join(LOADER)}, dataset=dict(data_root='{tmp_path / 'coco'}/'))\n"
        f"test_evaluator = dict(ann_file='{ann_file}')\n"
    )
    torch.save(dict(state_dict={'noise': torch.tensor(2.0)}), tmp_path / 'noise.pth')
    printed, changes = watched(
        tmp_path,
        *('tools/test.py', config, tmp_path / 'noise.pth', '--work-dir', tmp_path / 'run'),
        *('--out', tmp_path / 'predictions'),
        PYTHONPATH=f'{REPO}:{tmp_path}',
        # Let glibc return the memory of every image instead of keeping it as fragments between results.
        MALLOC_MMAP_THRESHOLD_='65536',
    )
    results = json.loads((tmp_path / 'predictions/predictions.bbox.json').read_text())
    assert len({result['image_id'] for result in results}) > NUM_IMAGES / 2
    truth = COCO(str(ann_file))
    evaluation = COCOeval(truth, truth.loadRes(results), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert 0.1 < evaluation.stats[0] < 0.9
    printed_ap = float(re.findall(r'^coco/bbox_mAP +([\d.]+)', printed, re.M)[-1])
    assert printed_ap == pytest.approx(evaluation.stats[0], abs=0.0006)
    assert_memory_is_constant(changes, margin=60)  # results take about 10 KB per image
