"""Intermediate supervision as an option of detectors and segmentors."""

import copy
import gc
import pickle
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.models import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import nn

from revcol_mm import ColumnSupervision, RevCol
from revcol_mm.models import ReversibleColumns
from revcol_mm.testing import peak_bytes, worst_errors

from .subprocesses import REPO
from .test_reversible_columns import TwoStages

FCN = dict(
    type='FCNHead',
    in_index=2,
    in_channels=128,
    channels=8,
    num_convs=1,
    concat_input=False,
    dropout_ratio=0.0,
    num_classes=11,
)
FPN = dict(type='FPN', in_channels=[32, 64, 128, 256], out_channels=8, num_outs=4)
FCOS = dict(
    type='FCOSHead',
    num_classes=10,
    in_channels=8,
    feat_channels=8,
    stacked_convs=1,
    strides=[4, 8, 16, 32],
    regress_ranges=((-1, 16), (16, 32), (32, 64), (64, 1e8)),
    norm_cfg=dict(type='GN', num_groups=2),
)


def build(method, save_memory=False, folder='configs', changes=None, **supervision):
    """Build the model of a sample config, with supervision if options for it are given."""
    cfg = Config.fromfile(REPO / folder / f'{method}_revcol_nano_sample.py')
    cfg.merge_from_dict(changes or {})
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.save_memory = save_memory
    if supervision:
        cfg.model.update(type='SupervisedColumns', model_type=cfg.model.type, supervision=supervision)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()  # initialises DINO's level embedding
    return model


def batch(model, size=(64, 96)):
    """Return two images of noise, annotated with masks or boxes."""
    samples = []
    for label in (1, 2):
        if isinstance(model, EncoderDecoder):
            sample = SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, *size), label)))
        else:
            boxes = torch.tensor([[8.0, 8.0, 40.0, 56.0]])
            masks = BitmapMasks(np.ones((1, *size), np.uint8), *size)
            objects = InstanceData(bboxes=boxes, masks=masks, labels=torch.tensor([label]))
            sample = DetDataSample(gt_instances=objects)
        shapes = dict(img_shape=size, batch_input_shape=size, pad_shape=size, ori_shape=size)
        sample.set_metainfo(dict(shapes, img_id=label))
        samples.append(sample)
    return dict(inputs=torch.randn(2, 3, *size), data_samples=samples)


def losses_and_gradients(model, data):
    """Return the losses and the gradients of their sum, with random numbers from seed 0."""
    torch.manual_seed(0)
    losses = model.train()(**copy.deepcopy(data), mode='loss')
    model.parse_losses(losses)[0].backward()
    return losses, {name: param.grad for name, param in model.named_parameters()}


@pytest.fixture
def double_precision():
    """Batch norm over few values, as in these models, amplifies rounding errors."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def total(value):
    return sum(value) if isinstance(value, list) else value


@pytest.mark.parametrize('columns', [None, (1,), (0, 2)])
def test_losses_are_weighted_by_column(columns):
    options = dict(columns=columns, reconstruction_weight=3.0, head=FCN, task_weight=0.7)
    model = build('upernet', **options)
    data = batch(model)
    losses, _ = losses_and_gradients(model, data)
    columns = columns or (0, 1, 2)
    features = list(model.backbone.forward_columns(data['inputs']))
    expected = {}
    for i, (index, part) in enumerate(zip(columns, model.supervision.parts, strict=True)):
        image = data['inputs'] * model.data_preprocessor.std + model.data_preprocessor.mean
        rec = nn.functional.binary_cross_entropy_with_logits(
            part['decoder'](features[index][-1]), (image / 255).clamp(0.01, 0.99)
        )
        expected[f'supervision.{index}.loss_rec'] = 3.0 * (1 - i / len(columns)) * rec
        ce = part['head'].loss(features[index], data['data_samples'], {})['loss_ce']
        expected[f'supervision.{index}.loss_ce'] = 0.7 * (i + 1) / (len(columns) + 1) * ce
    assert set(expected) == {name for name in losses if name.startswith('supervision') and 'loss' in name}
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_reconstruction_has_the_strides_of_the_backbone_and_channels_last_gradients():
    net = TwoStages(nn.Conv2d(3, 8, 9, 8, 4), nn.Conv2d(8, 16, 3, 2, 1))  # they round sizes up
    backbone, images = ReversibleColumns(net, 4).train(), torch.randn(1, 3, 40, 56)
    preprocessor = ImgDataPreprocessor(mean=[0.0] * 3, std=[1.0] * 3)
    supervision = ColumnSupervision(backbone, preprocessor, reconstruction_weight=1.0)
    model = SimpleNamespace(backbone=backbone, data_preprocessor=preprocessor)
    with supervision.keep_features(backbone) as features:
        list(backbone.forward_columns(images))
    layouts = []
    for kept in features.values():
        assert list(kept) == [1]  # without a head, only the last level
        kept[1].register_hook(
            lambda grad: layouts.append(grad.is_contiguous(memory_format=torch.channels_last))
        )
    losses = supervision.loss(model, features, images, [])
    assert len(losses) == 3
    sum(losses.values()).backward()
    assert layouts == [True] * 3
    assert supervision.parts[0]['decoder'](torch.rand(1, 16, 3, 4)).shape == (1, 3, 48, 64)


@pytest.mark.parametrize('method', ['upernet', 'mask2former', 'dino', 'cascade_mask_rcnn'])
def test_supervision_adds_losses_and_changes_no_other(method):
    plain, supervised = build(method), build(method, reconstruction_weight=0.3)
    supervised.load_state_dict(plain.state_dict(), strict=False)
    data = batch(plain)
    expected, _ = losses_and_gradients(plain, data)
    losses, gradients = losses_and_gradients(supervised, data)
    assert {name for name in losses if name not in expected} == {
        f'supervision.{i}.loss_rec' for i in range(3)
    }
    for name, value in expected.items():
        assert float(total(losses[name])) == pytest.approx(float(total(value)), rel=1e-5), name
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all(), name


def test_reversible_gradients_of_a_segmentor_equal_plain_ones(double_precision):
    options = dict(reconstruction_weight=0.3, head=FCN)
    plain, reversible = (build('upernet', save_memory, **options) for save_memory in (False, True))
    data = batch(plain)
    results = [losses_and_gradients(model, data)[1] for model in (reversible, plain)]
    assert worst_errors(*results)[0][0] < 1e-8


def test_reversible_gradients_of_a_detector_equal_plain_ones():
    """A one-stage detector, because proposals of two-stage detectors change with rounding errors."""
    changes = {
        'model.backbone.out_indices': (0, 1, 2, 3),  # needed by the neck of the supervision
        'model.neck.in_channels': FPN['in_channels'],
        'model.neck.start_level': 1,
    }
    options = dict(folder='tests/configs', changes=changes, reconstruction_weight=0.3, head=FCOS, neck=FPN)
    plain, reversible = (build('retinanet', save_memory, **options) for save_memory in (False, True))
    data = batch(plain)
    results = [losses_and_gradients(model, data)[1] for model in (reversible, plain)]
    assert worst_errors(*results)[0][0] < 2e-5


def test_reconstruction_with_save_memory_stores_no_column():
    channels = (16, 24, 32, 48)

    def peak(num_columns, supervision=None):
        arch = dict(channels=channels, layers=(1, 1, 1, 1), num_columns=num_columns)
        cfg = dict(
            type='EncoderDecoder',
            backbone=dict(type='RevCol', arch=arch, save_memory=True),
            decode_head=dict(FCN, in_index=3, in_channels=48),
            data_preprocessor=dict(type='SegDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3),
        )
        if supervision:
            cfg.update(type='SupervisedColumns', model_type='EncoderDecoder', supervision=supervision)
        init_default_scope('mmseg')
        model = MODELS.build(cfg)
        data = batch(model, (128, 128))
        losses_and_gradients(model, data)  # allocates gradients
        return peak_bytes(lambda: losses_and_gradients(model, data))

    def extra(num_columns):
        return peak(num_columns, dict(reconstruction_weight=0.3)) - peak(num_columns)

    column = 2 * 4 * sum(width * (32 // 2**level) ** 2 for level, width in enumerate(channels))
    assert extra(8) < column
    assert extra(16) < extra(8) + column / 8


def test_prediction_and_evaluation_do_not_run_supervision():
    plain, supervised = build('upernet'), build('upernet', reconstruction_weight=0.3, head=FCN)
    report = supervised.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert type(supervised).__name__ == 'EncoderDecoder' and isinstance(supervised, EncoderDecoder)
    assert {key.split('.')[0] for key in report.missing_keys} == {'supervision'}
    data = batch(plain)
    for part in supervised.supervision.parts.children():
        part['decoder'].forward = part['head'].forward = None  # any call fails
    with torch.no_grad():
        for mode in ('tensor', 'predict', 'loss'):
            results = [model.eval()(**copy.deepcopy(data), mode=mode) for model in (plain, supervised)]
            if mode == 'tensor':
                assert torch.equal(*results)
            elif mode == 'loss':
                assert list(results[0]) == list(results[1])


@pytest.mark.parametrize('mode', ['tensor', 'loss'])
def test_features_are_freed_after_a_forward_pass(mode):
    model = build('upernet', reconstruction_weight=0.3, head=FCN).train()
    features = []
    model.backbone.columns[1].register_forward_hook(
        lambda module, inputs, outputs: features.extend(map(weakref.ref, outputs))
    )
    model(**batch(model), mode=mode)
    gc.collect()
    assert [feature() for feature in features] == [None] * 4


@pytest.mark.parametrize(
    'copied', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=['copied', 'pickled']
)
def test_copied_or_pickled_model_supervises_its_own_columns(copied):
    model = build('upernet', reconstruction_weight=0.3)
    twin = copied(model)
    with torch.no_grad():
        for param in twin.parameters():
            param.mul_(0.5)
    data = batch(model)
    (losses, _), (others, gradients) = (losses_and_gradients(each, data) for each in (model, twin))
    assert type(twin) is type(model)
    assert losses['supervision.1.loss_rec'] != others['supervision.1.loss_rec']
    assert all(gradient is not None for gradient in gradients.values())


def test_image_sizes_need_not_be_multiples_of_32():
    model = build('upernet', reconstruction_weight=0.3)
    losses, _ = losses_and_gradients(model, batch(model, (70, 100)))
    assert losses['supervision.0.loss_rec'].isfinite()


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(), 'reconstruction_weight, a head, or both'),
        (dict(neck=dict(type='FPN'), reconstruction_weight=1.0), 'neck and task_weight need a head'),
        (dict(task_weight=0.5, reconstruction_weight=1.0), 'neck and task_weight need a head'),
        (dict(reconstruction_weight=-1.0), 'must not be negative, got -1.0'),
        (dict(reconstruction_weight=1.0, columns=[3]), r'indices from 0 to 2 in ascending order, got \[3\]'),
        (dict(reconstruction_weight=1.0, columns=[1, 0]), r'got \[1, 0\]'),
        (dict(reconstruction_weight=1.0, columns=[]), r'got \[\]'),
    ],
)
def test_invalid_option_is_an_error(options, message):
    preprocessor = nn.Identity()
    preprocessor.mean = preprocessor.std = torch.ones(3, 1, 1)
    with pytest.raises(ValueError, match=message):
        ColumnSupervision(RevCol('nano'), preprocessor, **options)


def test_reconstruction_needs_a_normalising_data_preprocessor():
    with pytest.raises(ValueError, match='mean and std, got Identity'):
        ColumnSupervision(RevCol('nano'), nn.Identity(), reconstruction_weight=1.0)


def test_backbone_without_columns_is_an_error():
    init_default_scope('mmseg')
    with pytest.raises(ValueError, match='backbone is made of columns.*ResNet'):
        MODELS.build(
            dict(
                type='SupervisedColumns',
                model_type='EncoderDecoder',
                backbone=dict(type='ResNet', depth=18),
                decode_head=dict(FCN, in_channels=256),
                supervision=dict(reconstruction_weight=1.0),
            )
        )
