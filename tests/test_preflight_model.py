"""Classes, class weights, channels and batch norm of a model are compared with its data before a run."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from revcol_mm import RevCol, check_env
from revcol_mm.errors import PreflightError
from revcol_mm.preflight.batch_norm import check_batch_norm
from revcol_mm.preflight.class_weights import check_class_weight_with_ignored_pixels, check_class_weights
from revcol_mm.preflight.feature_channels import check_channels
from revcol_mm.preflight.num_classes import check_num_classes

from .bare_runner import CASCADE, DETECTOR, QUERIES, SEGMENTOR, Dataset, bare_runner, check_model, read

TWELVE = [1.0] * 12


@pytest.mark.parametrize(
    'config, key, value, message',
    [
        (CASCADE, 'roi_head.bbox_head.0.num_classes', 5, r'bbox_head\.0 .*num_classes=5.* 10 classes: set'),
        (CASCADE, 'roi_head.bbox_head.2.num_classes', 80, r'bbox_head\.2 .*num_classes=80'),
        (CASCADE, 'roi_head.mask_head.num_classes', 9, r'mask_head\.0 .*num_classes=9'),
        (SEGMENTOR, 'auxiliary_head.num_classes', 12, 'auxiliary_head .*num_classes=12.* 11 classes'),
        (QUERIES, 'decode_head.loss_cls.class_weight', TWELVE[:11], 'loss_cls.* 11 numbers.* needs 12'),
        (QUERIES, 'decode_head.loss_cls.class_weight', [*TWELVE, 0.1], '13 numbers.*last for the background'),
        (
            SEGMENTOR,
            'decode_head.loss_decode.class_weight',
            TWELVE,
            r'loss_decode\.class_weight .* needs 11',
        ),
        (
            SEGMENTOR,
            'auxiliary_head.loss_decode',
            [dict(type='CrossEntropyLoss', class_weight=TWELVE, loss_name='a')],
            r'auxiliary_head\.loss_decode.* 12 numbers',
        ),
        (
            CASCADE,
            'roi_head.bbox_head.1.loss_cls.class_weight',
            [1.0] * 10,
            r'bbox_head\.1\.loss_cls.* 10 numbers; it needs 11',
        ),
        (SEGMENTOR, 'decode_head.in_channels', [8, 8, 8, 8], r'decode_head\.in_channels is'),
        (
            SEGMENTOR,
            'auxiliary_head.in_channels',
            8,
            r'auxiliary_head\.in_channels is \[8\], .* gives \[\d+\]',
        ),
        (SEGMENTOR, 'auxiliary_head.in_index', 5, r'auxiliary_head.*, but the backbone gives \[\d+, '),
        (CASCADE, 'neck.in_channels', [8, 8, 8, 8], r'neck\.in_channels is'),
        (CASCADE, 'rpn_head.in_channels', 256, 'rpn_head.in_channels is 256, but the neck gives 64'),
        (CASCADE, 'neck.out_channels', 32, 'rpn_head.in_channels is 64, but the neck gives 32'),
        (CASCADE, 'roi_head.mask_roi_extractor.out_channels', 9, 'out_channels of .*mask_roi_ext.* is 9'),
        (CASCADE, 'neck.num_outs', 4, 'num_outs is 4, but model.rpn_head has 5 strides'),
        (DETECTOR, 'neck.num_outs', 5, 'num_outs is 5, but num_levels of encoder'),
        (DETECTOR, 'num_feature_levels', 3, 'num_feature_levels is 3, but model.neck.num_outs 4'),
    ],
)
def test_numbers_that_do_not_fit_are_an_error(config, key, value, message):
    cfg = read(config, {f'model.{key}': value})
    with pytest.raises(PreflightError, match=message) as error:
        check_model(bare_runner(cfg))
    assert '\n' not in str(error.value)


def test_heads_behind_a_neck_are_not_compared_with_the_backbone():
    backbone = RevCol(dict(channels=(8, 16), layers=(1, 1), num_columns=2), out_indices=(0, 1))
    parts = dict(neck=dict(in_channels=[8, 16]), decode_head=dict(in_channels=[3]))
    check_channels(nn.ModuleDict(dict(backbone=backbone)), parts)


@pytest.mark.parametrize('suffix', ['.json', '.npy'])
def test_class_weights_of_a_file_are_checked(suffix, tmp_path):
    path = tmp_path / f'weights{suffix}'
    np.save(path, TWELVE) if suffix == '.npy' else path.write_text(str(TWELVE))
    cfg = read(SEGMENTOR, {'model.decode_head.loss_decode.class_weight': str(path)})
    with pytest.raises(PreflightError, match='12 numbers; it needs 11'):
        check_class_weights(bare_runner(cfg).model)


@pytest.mark.parametrize('key', ['class_weight', 'pos_weight'])
def test_class_weights_of_a_classifier_are_checked(key):
    init_default_scope('mmpretrain')
    loss = dict(type='CrossEntropyLoss', use_sigmoid=key == 'pos_weight')
    head = dict(type='LinearClsHead', num_classes=5, in_channels=8, loss={**loss, key: [1.0] * 4})
    with pytest.raises(PreflightError, match=rf'{key} of the model has 4 numbers; it needs 5'):
        check_class_weights(MODELS.build(head))


@pytest.mark.skipif(check_env.installed_set() == 'onedl', reason='onedl-mmsegmentation is fixed')
@pytest.mark.parametrize('ignored', [255, 11])
def test_class_weights_that_fail_at_ignored_pixels_are_a_warning(ignored, log_warnings):
    """If the loss does not fail, MMSegmentation was fixed, and the check can be removed."""
    options = {
        'model.decode_head.ignore_index': ignored,
        'model.decode_head.loss_decode.class_weight': [1.0] * 11,
    }
    head = bare_runner(read(SEGMENTOR, options)).model.decode_head
    del log_warnings[:]
    check_class_weight_with_ignored_pixels(nn.ModuleDict(dict(decode_head=head)))
    (message,) = log_warnings
    assert 'decode_head.loss_decode: ' in message and f'({ignored})' in message
    scores, labels = torch.zeros(1, 11, 2, 2), torch.tensor([[[0, 1], [10, ignored]]])
    with pytest.raises(IndexError):
        head.loss_decode(scores, labels, ignore_index=ignored)

    for key, value in dict(reduction='sum', loss_weight=0.25).items():  # the remedy of the message
        options[f'model.decode_head.loss_decode.{key}'] = value
    head = bare_runner(read(SEGMENTOR, options)).model.decode_head
    assert head.loss_decode.class_weight == [1.0] * 11
    del log_warnings[:]
    check_class_weight_with_ignored_pixels(nn.ModuleDict(dict(decode_head=head)))
    assert log_warnings == []
    loss = head.loss_decode(scores, labels, ignore_index=ignored)
    assert loss.item() == pytest.approx(0.75 * math.log(11))


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='OhemCrossEntropy', class_weight=[1.0] * 11),
        dict(type='FocalLoss', class_weight=[1.0] * 11),
        dict(type='LovaszLoss', class_weight=[1.0] * 11, reduction='none'),
        dict(type='CrossEntropyLoss', class_weight=[1.0] * 11, use_sigmoid=True),
        dict(type='DiceLoss'),
    ],
    ids=lambda loss: loss['type'],
)
def test_other_losses_with_class_weights_pass(loss, log_warnings):
    head = nn.Module()
    init_default_scope('mmseg')
    head.loss_decode, head.ignore_index = MODELS.build(loss), 255
    del log_warnings[:]
    check_class_weight_with_ignored_pixels(nn.ModuleDict(dict(decode_head=head)))
    assert log_warnings == []


def test_a_panoptic_model_counts_things_and_stuff():
    classes = dict(thing_classes=('a', 'b'), stuff_classes=('c',), classes=('a', 'b', 'c'))
    model = nn.ModuleDict(dict(roi_head=nn.Identity(), semantic_head=nn.Identity()))
    model.roi_head.num_classes = 2
    model.semantic_head.num_things_classes, model.semantic_head.num_stuff_classes = 2, 1
    check_num_classes(model, 'the data set', SimpleNamespace(metainfo=classes))
    model.semantic_head.num_stuff_classes = 53
    with pytest.raises(PreflightError, match='semantic_head .*num_stuff_classes=53, the data set has 1'):
        check_num_classes(model, 'the data set', SimpleNamespace(metainfo=classes))


def test_classes_of_a_model_without_a_head_are_compared():
    model = nn.Identity()
    model.num_classes = 1000
    with pytest.raises(PreflightError, match=r'Identity of the model has num_classes=1000.*3 classes'):
        check_num_classes(model, 'the data set', Dataset([], num_classes=3))


@pytest.mark.parametrize(
    'batch_size, num_images, options, message',
    [
        (1, 100, {}, 'batch_size is 1, but decode_head.psp_modules.0.1.bn .*batch_size to 2 or more'),
        (8, 97, {}, 'batch_size=8 leaves one of 97 images .*set drop_last=True'),
        (8, 97, {'drop_last': True}, None),
        (8, 96, {}, None),
        (8, 98, {}, None),
        (1, 100, {'norm': dict(type='GN', num_groups=8)}, None),
        (1, 100, {'pool_scales': (2, 3)}, None),
        (8, 97, {'infinite': True}, None),
        (8, 97, {'max_iters': 12}, None),  # training ends before the last batch of the epoch
    ],
)
def test_batch_norm_over_one_pixel_is_an_error(batch_size, num_images, options, message):
    cfg = read(SEGMENTOR)
    head = cfg.model.decode_head
    head.norm_cfg, head.pool_scales = options.get('norm', head.norm_cfg), options.get('pool_scales', (1, 2))
    cfg.train_dataloader.update(batch_size=batch_size, drop_last=options.get('drop_last', False))
    if not options.get('infinite'):
        cfg.train_dataloader.sampler = dict(type='DefaultSampler')
    runner = bare_runner(cfg, num_images)
    runner._train_loop._max_iters = options.get('max_iters', 300)
    if message is None:
        check_batch_norm(runner)
    else:
        with pytest.raises(PreflightError, match=message):
            check_batch_norm(runner)


@pytest.mark.parametrize('num_processes', [1, 2])
def test_synchronized_batch_norm_needs_two_processes(num_processes, monkeypatch):
    monkeypatch.setattr('revcol_mm.preflight.batch_norm.get_world_size', lambda: num_processes)
    options = {'model.decode_head.norm_cfg.type': 'SyncBN', 'train_dataloader.batch_size': 1}
    runner = bare_runner(read(SEGMENTOR, options))
    if num_processes == 2:
        check_batch_norm(runner)
        return
    with pytest.raises(PreflightError, match='batch_size is 1'):
        check_batch_norm(runner)


def test_torch_refuses_batch_norm_over_one_pixel():
    init_default_scope('mmseg')
    head = MODELS.build(read(SEGMENTOR).model.decode_head)
    features = [torch.rand(1, channels, 8, 8) for channels in head.in_channels]
    with pytest.raises(ValueError, match='Expected more than 1 value per channel'):
        head.train()(features)
