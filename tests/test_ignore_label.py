"""Labels other than 255 can be ignored, by losses, metrics, pictures and analyses."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

from revcol_mm.analysis.labelled_images import LABEL_STRIDE, UNLABELLED, LabelledImages
from revcol_mm.data.ignore_label import check_ignore_label
from revcol_mm.data.pipelines import ignore_index
from revcol_mm.visualization import prediction_pictures
from revcol_mm.visualization.drawable_samples import without_ignored

from .subprocesses import REPO, run
from .test_prediction_pictures import draw, segmentation

UPERNET = 'configs/upernet_revcol_nano_sample.py'
SUPERVISED = 'configs/upernet_revcol_nano_supervised_sample.py'
MASK2FORMER = 'configs/mask2former_revcol_nano_sample.py'
VOID = [11, 10]  # beyond the 11 classes, and one of them, which then has no pixels
SETTINGS = """
_base_ = ['{base}']
void = {void}
train_pipeline, test_pipeline, tta_pipeline = _base_.train_pipeline, _base_.test_pipeline, _base_.tta_pipeline
train_pipeline[3].update(ignore_index=void)
dataset = dict(data_root='{root}', ignore_index=void, reduce_zero_label=False)
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
model = dict(data_preprocessor=dict(seg_pad_val=void), decode_head=dict(ignore_index=void))
val_evaluator = dict(ignore_index=void)
test_evaluator = [dict(type=name, ignore_index=void) for name in ('IoUMetric', 'CommonestClassIoU')]
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
"""
HEADS = {
    UPERNET: "model['auxiliary_head'] = dict(ignore_index=void)\n",
    SUPERVISED: "model['auxiliary_head'] = dict(ignore_index=void)\n"
    "model['supervision'] = dict(head=dict(ignore_index=void))\n",
    MASK2FORMER: "model['decode_head'].update(leave_out_ignored=True)\n",
}


@pytest.fixture
def config(sample_data, tmp_path):
    """A function that writes the sample data with a void label around the digits, and a config for them."""

    def write(base, void, more=''):
        root = tmp_path / f'void{void}'
        for path in (sample_data / 'ade20k/annotations').rglob('*.png'):
            labels = np.asarray(Image.open(path)).astype(int) - 1
            labels[(labels < 0) | (labels == void)] = void
            written = root / path.relative_to(sample_data / 'ade20k')
            written.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels.astype(np.uint8)).save(written)
        (root / 'images').symlink_to(sample_data / 'ade20k/images')
        path = tmp_path / 'config.py'
        path.write_text(SETTINGS.format(base=REPO / base, void=void, root=root) + HEADS[base] + more)
        return path

    return write


@pytest.mark.parametrize('void', VOID)
@pytest.mark.parametrize('base', [UPERNET, SUPERVISED, MASK2FORMER])
def test_void_pixels_give_no_gradient(base, void, config):
    cfg = Config.fromfile(config(base, void))
    with DefaultScope.overwrite_default_scope('mmseg'):
        model, dataset = MODELS.build(cfg.model), DATASETS.build(cfg.train_dataloader.dataset)
    model.init_weights()
    model.train()
    batch = model.data_preprocessor(pseudo_collate([dataset[0], dataset[1]]), training=True)
    labels = torch.stack([sample.gt_sem_seg.data for sample in batch['data_samples']])
    assert (labels == void).any() and labels[labels != void].max() < 11
    if base == MASK2FORMER:  # test_semantic_mask2former_head.py checks its gradients
        instances, _ = model.decode_head._seg_data_to_instance_data(batch['data_samples'])
        assert all(void not in instance.labels for instance in instances)
    else:
        heads = [model.decode_head, model.auxiliary_head]
        if base == SUPERVISED:
            heads += [part['head'] for part in model.supervision.parts]
        for head in heads:
            logits = torch.randn(2, 11, *labels.shape[2:], requires_grad=True)
            losses = head.loss_by_feat(logits, batch['data_samples'])
            (gradient,) = torch.autograd.grad(losses['loss_ce'], logits)
            gradient = gradient.abs().sum(1, keepdim=True)
            assert not gradient[labels == void].any() and gradient[labels != void].all()
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    assert loss.isfinite()


@pytest.mark.slow
@pytest.mark.parametrize('base', [UPERNET, MASK2FORMER])
def test_tools_ignore_another_label(base, config, tmp_path, call_tool):
    path = config(base, 11, 'train_pipeline[2].update(scale=(512, 96))\n')  # smaller than crops, so padded
    run('tools/train.py', path, '--work-dir', tmp_path / 'work', '--seed', 0)
    checkpoint = tmp_path / 'work/iter_2.pth'
    printed = run('tools/test.py', path, checkpoint, '--work-dir', tmp_path / 'work')
    assert re.search(r'^commonest_class/mIoU +\d', printed, re.M)
    printed, error = call_tool('tools/analysis/confusion.py', path, checkpoint, '--out', tmp_path / 'out')
    assert not error
    report = json.loads((tmp_path / 'out/confusion.json').read_text())
    masks = (tmp_path / 'void11/annotations/validation').iterdir()
    labelled = sum((np.asarray(Image.open(mask)) != 11).sum() for mask in masks)
    assert np.sum(report['matrix']) == labelled


@pytest.mark.parametrize('void', VOID)
def test_analyses_ignore_void_pixels(void, config, tmp_path, call_tool):
    path = config(UPERNET, void)
    images = LabelledImages(Config.fromfile(path), 'test', 2, (64, 64))
    assert ignore_index(images.loader.dataset) == void
    (batch, *_) = images.batches()
    centres = slice(LABEL_STRIDE // 2, None, LABEL_STRIDE)
    for sample, labels in zip(batch.data['data_samples'], batch.labels):
        truth = sample.gt_sem_seg.data[0][centres, centres]
        assert torch.equal(labels == UNLABELLED, truth == void)
    arguments = ('--split', 'test', '--number', 2, '--out', tmp_path / 'look')
    _, error = call_tool('tools/analysis/browse_dataset.py', path, *arguments)
    assert not error
    rows = json.loads((tmp_path / 'look/browse_dataset.json').read_text())
    for row in rows:
        assert 0.5 < sum(row['holds'].values()) < 1
        assert void != 10 or '9' not in row['holds']


def test_pictures_show_no_ignored_class():
    sample = segmentation((0, 2, 3, 1), (3, 3, 3, 3))
    cleared = without_ignored(sample, 2, 4)
    assert cleared.gt_sem_seg.data.unique().tolist() == [0, 1, 3, 4]
    assert sample.gt_sem_seg.data.unique().tolist() == [0, 1, 2, 3]
    assert without_ignored(sample, 255, 4) is sample
    with_void, without = (draw(each) for each in (sample, cleared))
    cat = (60, 180, 75)
    for half in ('truth', 'prediction'):
        assert np.array_equal(with_void[half], without[half]) == (half == 'prediction')
    assert not (without['legend'] == cat).all(-1).any() and (with_void['legend'] == cat).all(-1).any()


def test_the_picture_hook_uses_the_ignored_label_of_the_data_set(tmp_path, monkeypatch):
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    drawn = []
    monkeypatch.setattr(
        prediction_pictures, 'draw_beside_truth', lambda visualizer, image, sample: drawn.append(sample)
    )
    labels = PixelData(data=torch.tensor([[[0, 1], [2, 1]]]))
    sample = SegDataSample(gt_sem_seg=labels, metainfo=dict(img_path=str(tmp_path / 'a.png')))
    dataset = SimpleNamespace(ignore_index=1, metainfo=dict(classes='abc'))
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
    visualizer = SimpleNamespace(add_image=lambda *_: None)
    runner = SimpleNamespace(visualizer=visualizer, iter=0, test_loop=loop)
    hook = prediction_pictures.PredictionPicturesHook(interval=1)
    hook._after_iter(runner, 0, None, [sample], mode='test')
    assert drawn[0].gt_sem_seg.data.tolist() == [[[0, 3], [2, 3]]]


@pytest.mark.parametrize(
    'change, message',
    [
        ('train_pipeline[3].update(ignore_index=255)', 'RandomCrop has ignore_index=255'),
        ("train_pipeline.append(dict(type='Pad', size=(9, 9)))", r"Pad has pad_val\['seg'\]=255"),
        (
            "train_pipeline.append(dict(type='RandomApply', transforms=[dict(type='RandomRotate', prob=1, "
            'degree=9)]))',
            'RandomRotate has seg_pad_val=255',
        ),
        ("model['data_preprocessor'].update(seg_pad_val=255)", 'data_preprocessor of the .* seg_pad_val=255'),
        ('dataset_change = dict(reduce_zero_label=True)', 'reduce_zero_label=True turns labels into 255'),
        ('metric = 255', 'IoUMetric has ignore_index=255'),
        ('train_pipeline[3].update(ignore_index=255, cat_max_ratio=1.0)', None),  # reads no labels
        ('', None),
    ],
)
def test_a_part_that_ignores_another_label_is_an_error(change, message, config):
    cfg = Config.fromfile(config(UPERNET, 11, f'{change}\n'))
    cfg.train_dataloader.dataset.update(cfg.get('dataset_change', {}))
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
        dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, lazy_init=True))
    metrics = [IoUMetric(ignore_index=cfg.get('metric', 11))]
    wrapped = SimpleNamespace(dataset=SimpleNamespace(datasets=[dataset]))
    assert_found(check_ignore_label('train', wrapped, model, metrics), message)


def assert_found(findings, message):
    lines = [each.line for each in findings]
    assert len(lines) == (message is not None)
    assert not lines or re.search(message, lines[0])


def test_every_part_with_another_label_is_named():
    dataset = SimpleNamespace(ignore_index=11, reduce_zero_label=False)
    findings = check_ignore_label('val', dataset, None, [IoUMetric(), SimpleNamespace(ignore_label=7)])
    assert_found(findings, 'but IoUMetric has ignore_index=255, SimpleNamespace has ignore_label=7; set all')


def test_leaving_classes_out_writes_255():
    dataset = SimpleNamespace(ignore_index=11, reduce_zero_label=False, label_map={0: 0, 1: 255})
    message = 'leaving classes out turns labels into 255; set its ignore_index to that, not to 11'
    assert_found(check_ignore_label('train', dataset, nn.Identity(), []), message)
    dataset.ignore_index = 255
    assert_found(check_ignore_label('train', dataset, nn.Identity(), []), None)


def test_losses_are_checked():
    dataset = SimpleNamespace(ignore_index=11, reduce_zero_label=False)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = nn.ModuleDict(dict(loss=MODELS.build(dict(type='DiceLoss'))))
    assert_found(check_ignore_label('val', dataset, model, []), 'loss of the model has ignore_index=255')
    model = nn.ModuleDict(dict(loss=nn.CrossEntropyLoss()))  # -100 ignores nothing
    assert_found(check_ignore_label('val', dataset, model, []), None)
