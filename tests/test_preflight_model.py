"""A model, its evaluators and its schedule that do not fit each other are an error before the run."""

import copy
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, init_default_scope
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmseg.evaluation import IoUMetric
from torch import nn
from torch.utils.data import DataLoader

from revcol_mm.errors import PreflightError
from revcol_mm.models.without_weights import without_weights
from revcol_mm.preflight.metrics import check_metrics, metric_names
from revcol_mm.preflight.model import (
    check_batch_norm,
    check_channels,
    check_class_weights,
    check_num_classes,
    check_weighted_pixels,
)
from revcol_mm.preflight.schedule import check_schedule
from revcol_mm.training.runner import ResumableRunner

from .subprocesses import REPO

CONFIGS = sorted((REPO / 'configs').glob('*.py'))


def metainfo(cfg):
    """What the data set tells of its classes; one of folders counts them."""
    dataset = cfg.train_dataloader.dataset
    told = DATASETS.get(f'{cfg.default_scope}.{dataset.type}').METAINFO
    counted = {} if told or 'num_classes' not in cfg.model else dict(classes=range(cfg.model.num_classes))
    return {**counted, **told, **dataset.get('metainfo', {})}


def bare_runner(cfg, num_images=100):
    """MMEngine's runner with as much as is checked, and a training loop over as many images."""
    init_default_scope(cfg.default_scope)
    runner = object.__new__(Runner)
    runner.cfg, runner.logger = cfg, MMLogger.get_current_instance()
    with without_weights():
        runner.model = MODELS.build(copy.deepcopy(cfg.model))
    loader = DataLoader(range(num_images), cfg.train_dataloader.batch_size, drop_last=False)
    if cfg.train_dataloader.sampler.type == 'InfiniteSampler':
        loader = DataLoader(range(num_images), loader.batch_size, sampler=InfiniteSampler(range(num_images)))
    is_epoch_based = 'max_epochs' in cfg.train_cfg
    loop = EpochBasedTrainLoop if is_epoch_based else IterBasedTrainLoop
    lengths = {key: cfg.train_cfg[key] for key in ('max_epochs', 'max_iters') if key in cfg.train_cfg}
    options = {k: v for k, v in cfg.train_cfg.items() if k.startswith('val_')}
    runner._train_loop = loop(runner, loader, **lengths, **options)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    runner.optim_wrapper = OptimWrapper(optimizer)
    runner.param_schedulers = runner.build_param_scheduler(cfg.param_scheduler)
    runner._hooks = [HOOKS.build(cfg.default_hooks.checkpoint)]
    runner._hooks += [HOOKS.build(hook) for hook in cfg.get('custom_hooks', ()) if 'EMA' not in hook.type]
    evaluators = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    evaluator = Evaluator([{k: v for k, v in each.items() if k != 'ann_file'} for each in evaluators])
    runner.metainfo = evaluator.dataset_meta = metainfo(cfg)
    runner._val_loop = SimpleNamespace(evaluator=evaluator)
    runner._test_loop = None
    return runner


def check(runner):
    check_channels(runner.model, runner.cfg.model)
    check_class_weights(runner.model)
    check_num_classes(runner.model, 'the data set', runner)
    check_metrics(runner)
    check_schedule(runner)
    check_batch_norm(runner)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_passes_without_a_warning(path, log_messages, monkeypatch):
    monkeypatch.setattr('revcol_mm.preflight.model.get_world_size', lambda: 8)  # as the configs say
    runner = bare_runner(Config.fromfile(path))
    del log_messages[:]
    check(runner)
    assert log_messages == []


SEGMENTOR = 'upernet_revcol_nano_sample.py'
QUERIES = 'mask2former_revcol_nano_sample.py'
DETECTOR = 'dino_revcol_nano_sample.py'
CASCADE = 'cascade_mask_rcnn_revcol_nano_sample.py'
CLASSIFIER = 'revcol_nano_sample.py'
EPOCHS = 'revcol_t_in1k.py'
TWELVE = [1.0] * 12
SAVE_BEST = 'default_hooks.checkpoint.save_best'


@pytest.mark.parametrize(
    'config, options, message',
    [
        # Classes.
        (CASCADE, {'roi_head.bbox_head.0.num_classes': 5}, r'bbox_head\.0 .*num_classes=5.* 10 classes: set'),
        (CASCADE, {'roi_head.bbox_head.2.num_classes': 80}, r'bbox_head\.2 .*num_classes=80'),
        (CASCADE, {'roi_head.mask_head.num_classes': 9}, r'mask_head\.0 .*num_classes=9'),
        (SEGMENTOR, {'auxiliary_head.num_classes': 12}, 'auxiliary_head .*num_classes=12.* 11 classes'),
        # Weights of classes.
        (QUERIES, {'decode_head.loss_cls.class_weight': TWELVE[:11]}, 'loss_cls.* 11 numbers.* takes 12'),
        (QUERIES, {'decode_head.loss_cls.class_weight': [*TWELVE, 0.1]}, '13 numbers.*last for none'),
        (
            SEGMENTOR,
            {'decode_head.loss_decode.class_weight': TWELVE},
            r'loss_decode\.class_weight .* takes 11',
        ),
        (
            SEGMENTOR,
            {
                'auxiliary_head.loss_decode': [
                    dict(type='CrossEntropyLoss', class_weight=TWELVE, loss_name='a')
                ]
            },
            r'auxiliary_head\.loss_decode.* 12 numbers',
        ),
        (
            CASCADE,
            {'roi_head.bbox_head.1.loss_cls.class_weight': [1.0] * 10},
            r'bbox_head\.1\.loss_cls.* 10 numbers; it takes 11',
        ),
        # Channels and levels.
        (SEGMENTOR, {'decode_head.in_channels': [8, 8, 8, 8]}, r'decode_head\.in_channels is'),
        (CASCADE, {'neck.in_channels': [8, 8, 8, 8]}, r'neck\.in_channels is'),
        (CASCADE, {'rpn_head.in_channels': 256}, 'rpn_head.in_channels is 256, but the neck gives 64'),
        (CASCADE, {'neck.out_channels': 32}, 'rpn_head.in_channels is 64, but the neck gives 32'),
        (CASCADE, {'roi_head.mask_roi_extractor.out_channels': 9}, r'out_channels of .*mask_roi_ext.* is 9'),
        (CASCADE, {'neck.num_outs': 4}, 'num_outs is 4, but model.rpn_head has 5 strides'),
        (DETECTOR, {'neck.num_outs': 5}, 'num_outs is 5, but num_levels of encoder'),
        (DETECTOR, {'num_feature_levels': 3}, 'num_feature_levels is 3, model.neck.num_outs 4'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_a_model_that_does_not_fit_is_an_error(config, options, message):
    cfg = Config.fromfile(REPO / 'configs' / config)
    cfg.merge_from_dict({f'model.{key}': value for key, value in options.items()})
    with pytest.raises(PreflightError, match=message) as error:
        check(bare_runner(cfg))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('suffix', ['.json', '.npy'])
def test_weights_of_classes_may_be_a_file(suffix, tmp_path):
    path = tmp_path / f'weights{suffix}'
    np.save(path, TWELVE) if suffix == '.npy' else path.write_text(str(TWELVE))
    cfg = Config.fromfile(REPO / 'configs' / SEGMENTOR)
    cfg.model.decode_head.loss_decode.class_weight = str(path)
    with pytest.raises(PreflightError, match='12 numbers; it takes 11'):
        check(bare_runner(cfg))


@pytest.mark.parametrize('key', ['class_weight', 'pos_weight'])
def test_weights_of_classes_of_a_classifier_are_checked(key):
    init_default_scope('mmpretrain')
    loss = dict(type='CrossEntropyLoss', use_sigmoid=key == 'pos_weight')
    head = dict(type='LinearClsHead', num_classes=5, in_channels=8, loss={**loss, key: [1.0] * 4})
    with pytest.raises(PreflightError, match=rf'{key} of the model has 4 numbers; it takes 5'):
        check_class_weights(MODELS.build(head))


@pytest.mark.parametrize('ignored', [255, 11])
def test_weights_of_classes_that_fail_at_ignored_pixels_are_named(ignored, log_messages):
    """And they do fail: where MMSegmentation is mended, this test is to go, with what it tests."""
    cfg = Config.fromfile(REPO / 'configs' / SEGMENTOR)
    cfg.model.decode_head.ignore_index = ignored
    cfg.model.decode_head.loss_decode.class_weight = [1.0] * 11
    runner = bare_runner(cfg)
    del log_messages[:]
    check_weighted_pixels(runner.model)
    (message,) = log_messages
    assert 'decode_head.loss_decode: ' in message and f'({ignored})' in message
    head = runner.model.decode_head
    scores, labels = torch.zeros(1, 11, 2, 2), torch.tensor([[[0, 1], [10, ignored]]])
    with pytest.raises(IndexError):
        head.loss_decode(scores, labels, ignore_index=ignored)

    cfg.model.decode_head.loss_decode.update(reduction='sum', loss_weight=0.25)  # as the message says
    runner = bare_runner(cfg)
    del log_messages[:]
    check_weighted_pixels(runner.model)
    assert log_messages == []
    loss = runner.model.decode_head.loss_decode(scores, labels, ignore_index=ignored)
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
def test_other_losses_with_weights_of_classes_are_left_alone(loss, log_messages):
    head = nn.Module()
    init_default_scope('mmseg')
    head.loss_decode, head.ignore_index = MODELS.build(loss), 255
    del log_messages[:]
    check_weighted_pixels(nn.ModuleDict(dict(decode_head=head)))
    assert log_messages == []


def test_numbers_of_a_panoptic_model_are_of_things_and_of_stuff():
    classes = dict(thing_classes=('a', 'b'), stuff_classes=('c',), classes=('a', 'b', 'c'))
    model = nn.ModuleDict(dict(roi_head=nn.Identity(), semantic_head=nn.Identity()))
    model.roi_head.num_classes = 2
    model.semantic_head.num_things_classes, model.semantic_head.num_stuff_classes = 2, 1
    check_num_classes(model, 'the data set', SimpleNamespace(metainfo=classes))
    model.semantic_head.num_stuff_classes = 53
    with pytest.raises(PreflightError, match='semantic_head .*num_stuff_classes=53, the data set has 1'):
        check_num_classes(model, 'the data set', SimpleNamespace(metainfo=classes))


# What is watched.

PLATEAU = dict(type='ReduceOnPlateauLR', rule='greater')


@pytest.mark.parametrize(
    'config, options, message',
    [
        (
            SEGMENTOR,
            {'val_evaluator.iou_metrics': ['mDice']},
            "save_best of CheckpointHook is 'mIoU', but val_evaluator gives aAcc, mDice, mAcc: take",
        ),
        (SEGMENTOR, {'val_evaluator.iou_metrics': ['mIOU']}, r"IoUMetric .*'mIOU'.*is not supported"),
        (SEGMENTOR, {'val_evaluator.prefix': 'val'}, 'gives val/aAcc, val/mIoU, val/mAcc'),
        (SEGMENTOR, {SAVE_BEST: ['mIoU', 'mDice']}, "'mDice'"),
        (
            SEGMENTOR,
            {'custom_hooks': [dict(type='EarlyStoppingHook', monitor='mAP')]},
            "EarlyStopping.* 'mAP'",
        ),
        (SEGMENTOR, {'param_scheduler': [PLATEAU]}, "monitor of ReduceOnPlateauLR is 'loss'"),
        (SEGMENTOR, {'val_evaluator': [dict(type='IoUMetric')] * 2}, 'two evaluators give aAcc'),
        (
            CASCADE,
            {SAVE_BEST: 'coco/mAP'},
            'gives coco/bbox_mAP, coco/bbox_mAP_50',
        ),
        (CASCADE, {SAVE_BEST: 'bbox_mAP'}, 'coco/segm_mAP_l'),
        (
            CASCADE,
            {SAVE_BEST: 'coco/ten_precision', 'val_evaluator.classwise': True},
            'coco/0_precision',
        ),
        (DETECTOR, {'val_evaluator.metric': ['bbox', 'segm']}, "'segm' .*masks, which DINO does not predict"),
        (DETECTOR, {'val_evaluator': dict(type='mmseg.IoUMetric')}, 'IoUMetric does not read what DINO'),
        (SEGMENTOR, {'val_evaluator': dict(type='mmpretrain.Accuracy')}, 'Accuracy does not read'),
        (CLASSIFIER, {'val_evaluator': dict(type='mmseg.IoUMetric')}, 'IoUMetric does not read'),
        (
            CLASSIFIER,
            {'val_evaluator.topk': (1, 11)},
            'Accuracy .* 10 classes: Top-11 accuracy is unavailable',
        ),
        (CLASSIFIER, {'val_evaluator.topk': (5,)}, "'accuracy/top1', but val_evaluator gives accuracy/top5"),
        (CLASSIFIER, {'val_evaluator.thrs': (0.1, 0.2)}, 'gives accuracy/top1_thr-0.10'),
        (
            CLASSIFIER,
            {
                'val_evaluator': dict(type='SingleLabelMetric', items=('recall',)),
                SAVE_BEST: 'a',
                'default_hooks.checkpoint.rule': 'less',
            },
            'gives single-label/recall',
        ),
        (
            CLASSIFIER,
            {
                'val_evaluator': dict(type='SingleLabelMetric', items=('f1-score',)),
                SAVE_BEST: 'auto',
            },
            "'auto' of CheckpointHook is 'single-label/f1-score', .*rule='greater' or 'less'",
        ),
        (
            SEGMENTOR,
            {'val_evaluator': [dict(type='CommonestClassIoU'), dict(type='ConfusionMetric')]},
            'commonest_class/mIoU, confusion/',
        ),
    ],
)
def test_a_metric_that_no_evaluator_gives_is_an_error(config, options, message):
    cfg = Config.fromfile(REPO / 'configs' / config)
    whole = {'val_evaluator', 'param_scheduler'} & options.keys()
    for key in whole:
        cfg[key] = options[key]  # merging would keep other arguments
    cfg.merge_from_dict({key: value for key, value in options.items() if key not in whole})
    with pytest.raises(PreflightError, match=message) as error:
        check(bare_runner(cfg))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'config, options',
    [
        (SEGMENTOR, {'val_evaluator.iou_metrics': ['mIoU', 'mDice', 'mFscore']}),
        (CASCADE, {SAVE_BEST: 'coco/segm_mAP_50'}),
        (
            CASCADE,
            {SAVE_BEST: 'coco/3_precision', 'val_evaluator.classwise': True},
        ),
        (CASCADE, {SAVE_BEST: 'coco/AR@100', 'val_evaluator.metric': 'proposal'}),
        (CLASSIFIER, {'val_evaluator.topk': (1, 10)}),
    ],
)
def test_a_metric_that_an_evaluator_gives_passes(config, options):
    cfg = Config.fromfile(REPO / 'configs' / config)
    cfg.merge_from_dict(options)
    check(bare_runner(cfg))


class UsersMetric(IoUMetric):
    """With names that only its own code knows."""

    def compute_metrics(self, results):
        return {'mAny': 1.0}


def test_of_an_evaluator_that_is_not_known_nothing_is_said():
    runner = bare_runner(Config.fromfile(REPO / 'configs' / SEGMENTOR))
    runner._val_loop.evaluator.metrics.append(UsersMetric())
    runner._hooks[0].save_best[:] = ['mAny']
    check_metrics(runner)


def test_names_are_those_that_evaluators_give(sample_data):
    """Of OpenMMLab's own code, so that a change of names there is seen here."""
    from mmdet.evaluation import CocoMetric

    metric = CocoMetric(ann_file=str(sample_data / 'coco/annotations/instances_val2017.json'), classwise=True)
    metric.dataset_meta = dict(classes=tuple('0123456789'))
    box = dict(
        bboxes=torch.tensor([[0.0, 0.0, 9.0, 9.0]]), scores=torch.ones(1), labels=torch.zeros(1).long()
    )
    names = list(metric_names(SimpleNamespace(metrics=[metric])))
    image = metric._coco_api.get_img_ids()[0]
    metric.process({}, [dict(pred_instances=box, img_id=image, ori_shape=(9, 9))])
    assert sorted(metric.evaluate(1)) == sorted(names)

    metric = IoUMetric(iou_metrics=['mIoU', 'mFscore'], prefix='a')
    metric.dataset_meta = dict(classes=('x', 'y'))
    names = metric_names(SimpleNamespace(metrics=[metric]))
    labels = dict(data=torch.tensor([[[0, 1]]]))
    metric.process({}, [dict(pred_sem_seg=labels, gt_sem_seg=labels)])
    assert list(metric.evaluate(1)) == names


# Lengths of a run.


@pytest.mark.parametrize(
    'config, options, message',
    [
        (
            SEGMENTOR,
            {'default_hooks.checkpoint.by_epoch': True},
            'CheckpointHook counts in epochs.*by_epoch=F',
        ),
        (SEGMENTOR, {'param_scheduler.1.by_epoch': True}, r'param_scheduler\.1 \(PolyLR\) counts in epochs'),
    ],
)
def test_epochs_in_a_run_by_iterations_are_an_error(config, options, message):
    cfg = Config.fromfile(REPO / 'configs' / config)
    cfg.merge_from_dict(options)
    with pytest.raises(PreflightError, match=message):
        check(bare_runner(cfg))


@pytest.mark.parametrize(
    'config, options, warnings',
    [
        (
            SEGMENTOR,
            {'train_cfg.val_interval': 5000},
            [
                'there is one validation, at the end: train_cfg.val_interval is 5000, and training ends '
                'at iteration 300'
            ],
        ),
        (
            EPOCHS,
            {'train_cfg.val_begin': 301},
            ['there is no validation: train_cfg.val_begin is 301, and training ends at epoch 300'],
        ),
        (
            SEGMENTOR,
            {'default_hooks.checkpoint.interval': 5000},
            [
                'there is one checkpoint, at the end: interval of CheckpointHook is 5000, and training '
                'ends at iteration 300'
            ],
        ),
        (
            SEGMENTOR,
            {'default_hooks.checkpoint.interval': 5000, 'default_hooks.checkpoint.save_last': False},
            [
                'no checkpoint but the best is saved: interval of CheckpointHook is 5000, and training ends '
                'at iteration 300, and save_last is False'
            ],
        ),
        (
            SEGMENTOR,
            {'param_scheduler.1.end': 160000},
            [
                'the learning rate does not get to the end of its schedule: param_scheduler.1 (PolyLR) ends '
                'at iteration 160000, training at 300'
            ],
        ),
        (
            SEGMENTOR,
            {'param_scheduler.1.end': 200},
            [
                'the learning rate is 0 from then on: param_scheduler.1 (PolyLR) ends at iteration 200, '
                'training at 300'
            ],
        ),
        (SEGMENTOR, {'param_scheduler.1.end': 200, 'param_scheduler.1.eta_min': 1e-6}, []),
        (
            SEGMENTOR,
            {'custom_hooks': [dict(type='mmdet.YOLOXModeSwitchHook', num_last_epochs=15)]},
            ['YOLOXModeSwitchHook does nothing: it waits for an epoch, and a run by iterations has one'],
        ),
        (EPOCHS, {'train_cfg.max_epochs': 400}, []),  # it ends at a ratio, not at 0
    ],
)
def test_lengths_that_are_odd_are_told_of(config, options, warnings, log_messages, monkeypatch):
    cfg = Config.fromfile(REPO / 'configs' / config)
    cfg.merge_from_dict(options)
    runner = bare_runner(cfg)
    del log_messages[:]
    check(runner)
    assert log_messages == warnings


def test_a_run_without_a_batch_is_an_error():
    runner = bare_runner(Config.fromfile(REPO / 'configs' / EPOCHS))
    runner._train_loop.dataloader = DataLoader(range(100), 128, drop_last=True)
    with pytest.raises(PreflightError, match='do not fill a batch .*batch_size to a smaller'):
        check_schedule(runner)


# Batches of one.


@pytest.mark.parametrize(
    'batch_size, num_images, options, message',
    [
        (1, 100, {}, 'batch_size is 1, but decode_head.psp_modules.0.1.bn .*batch_size to 2 or more'),
        (8, 97, {}, 'of 97 images train_dataloader.batch_size=8 leaves one .*set drop_last=True'),
        (8, 97, {'drop_last': True}, None),
        (8, 96, {}, None),
        (8, 98, {}, None),
        (1, 100, {'norm': dict(type='GN', num_groups=8)}, None),
        (1, 100, {'pool_scales': (2, 3)}, None),
        (8, 97, {'infinite': True}, None),
        (8, 97, {'max_iters': 12}, None),  # never at the end of an epoch
    ],
)
def test_a_batch_norm_over_one_pixel_is_an_error(batch_size, num_images, options, message):
    cfg = Config.fromfile(REPO / 'configs' / SEGMENTOR)
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
def test_processes_share_a_batch_norm_that_is_synchronized(num_processes, monkeypatch):
    monkeypatch.setattr('revcol_mm.preflight.model.get_world_size', lambda: num_processes)
    cfg = Config.fromfile(REPO / 'configs' / SEGMENTOR)
    cfg.model.decode_head.norm_cfg.type = 'SyncBN'
    cfg.train_dataloader.batch_size = 1
    runner = bare_runner(cfg)
    if num_processes == 2:
        check_batch_norm(runner)
        return
    with pytest.raises(PreflightError, match='batch_size is 1'):
        check_batch_norm(runner)


def test_torch_refuses_what_is_refused_here():
    head = MODELS.build(Config.fromfile(REPO / 'configs' / SEGMENTOR).model.decode_head)
    features = [torch.rand(1, channels, 8, 8) for channels in head.in_channels]
    with pytest.raises(ValueError, match='Expected more than 1 value per channel'):
        head.train()(features)


# The learning rate.


@pytest.mark.parametrize('counts, world_size, scale', [(1, 1, 0.5), (8, 1, 4.0), (8, 2, 8.0)])
def test_the_learning_rate_is_scaled_by_the_images_of_a_step(counts, world_size, scale):
    runner = object.__new__(ResumableRunner)
    runner.logger, runner._world_size = MMLogger.get_current_instance(), world_size
    runner._train_dataloader, runner.param_schedulers = dict(batch_size=8), None
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    wrapper = OptimWrapper(optimizer, accumulative_counts=counts)
    runner.scale_lr(wrapper, dict(enable=False, base_batch_size=16))
    assert optimizer.param_groups[0]['lr'] == 1.0
    runner.scale_lr(wrapper, dict(enable=True, base_batch_size=16))
    assert optimizer.param_groups[0]['lr'] == scale
    with pytest.raises(PreflightError, match='base_batch_size takes a number of images, got None'):
        runner.scale_lr(wrapper, dict(enable=True))


# All of it, as a user meets it.


@pytest.mark.parametrize(
    'options, message',
    [
        (['val_evaluator.iou_metrics=[mDice]'], "save_best of CheckpointHook is 'mIoU'"),
        (['val_evaluator.type=NoMetric'], 'cannot build an evaluator: .*NoMetric is not in'),
        (['param_scheduler.0.end=0'], 'cannot build the schedule: .*end should be larger than begin'),
        (['train_dataloader.batch_size=1'], 'batch_size is 1'),
        (['model.decode_head.loss_decode.class_weight=[1,1]'], 'class_weight of the model has 2 numbers'),
    ],
    ids=lambda value: '',
)
def test_training_ends_with_one_line_before_it_begins(options, message, sample_data, tmp_path, call_tool):
    data = sample_data / 'ade20k'
    roots = [f'{split}_dataloader.dataset.data_root={data}' for split in ('train', 'val', 'test')]
    arguments = ['--work-dir', tmp_path / 'run', '--cfg-options', *roots, *options]
    _, error = call_tool('tools/train.py', f'configs/{SEGMENTOR}', *arguments)
    assert re.match(f'error: .*{message}', error) and '\n' not in error
    assert not list((tmp_path / 'run').glob('*.pth'))
