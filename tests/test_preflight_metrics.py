"""Metrics that hooks and schedulers monitor are compared with those of the evaluators before a run."""

from types import SimpleNamespace

import pytest
import torch
from mmseg.evaluation import IoUMetric
from mmseg.models import SegTTAModel

from revcol_mm.errors import PreflightError
from revcol_mm.preflight.metrics import check_metrics, metric_names

from .bare_runner import CASCADE, CLASSIFIER, DETECTOR, SEGMENTOR, bare_runner, read

SAVE_BEST = 'default_hooks.checkpoint.save_best'
PLATEAU = dict(type='ReduceOnPlateauLR', rule='greater')


@pytest.mark.parametrize(
    'config, options, message',
    [
        (
            SEGMENTOR,
            {'val_evaluator.iou_metrics': ['mDice']},
            "save_best of CheckpointHook is 'mIoU', but val_evaluator gives aAcc, mDice, mAcc: use",
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
            SEGMENTOR,
            {'val_evaluator': [dict(type='CommonestClassIoU'), dict(type='ConfusionMetric')]},
            'commonest_class/mIoU, confusion/',
        ),
        (SEGMENTOR, {'val_evaluator': dict(type='mmpretrain.Accuracy')}, 'Accuracy cannot read'),
        (CASCADE, {SAVE_BEST: 'coco/mAP'}, 'gives coco/bbox_mAP, coco/bbox_mAP_50'),
        (CASCADE, {SAVE_BEST: 'bbox_mAP'}, 'coco/segm_mAP_l'),
        (
            CASCADE,
            {SAVE_BEST: 'coco/ten_precision', 'val_evaluator.classwise': True},
            'coco/0_precision',
        ),
        (DETECTOR, {'val_evaluator.metric': ['bbox', 'segm']}, "'segm' .*masks, which DINO does not predict"),
        (DETECTOR, {'val_evaluator': dict(type='mmseg.IoUMetric')}, 'IoUMetric cannot read .* of DINO'),
        (CLASSIFIER, {'val_evaluator': dict(type='mmseg.IoUMetric')}, 'IoUMetric cannot read'),
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
            {'val_evaluator': dict(type='SingleLabelMetric', items=('f1-score',)), SAVE_BEST: 'auto'},
            "'auto' of CheckpointHook is 'single-label/f1-score', .*rule='greater' or 'less'",
        ),
    ],
)
def test_a_monitored_metric_that_is_not_computed_is_an_error(config, options, message):
    replaced = {'val_evaluator', 'param_scheduler'} & options.keys()  # merging would keep other arguments
    cfg = read(config, {key: value for key, value in options.items() if key not in replaced})
    for key in replaced:
        cfg[key] = options[key]
    with pytest.raises(PreflightError, match=message) as error:
        check_metrics(bare_runner(cfg))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'config, options',
    [
        (SEGMENTOR, {'val_evaluator.iou_metrics': ['mIoU', 'mDice', 'mFscore']}),
        (CASCADE, {SAVE_BEST: 'coco/segm_mAP_50'}),
        (CASCADE, {SAVE_BEST: 'coco/3_precision', 'val_evaluator.classwise': True}),
        (CASCADE, {SAVE_BEST: 'coco/AR@100', 'val_evaluator.metric': 'proposal'}),
        (CLASSIFIER, {'val_evaluator.topk': (1, 10)}),
    ],
)
def test_a_monitored_metric_that_is_computed_passes(config, options):
    check_metrics(bare_runner(read(config, options)))


def test_metric_is_compared_with_the_model_inside_of_several_wrappers():
    cfg = read(SEGMENTOR)
    cfg.val_evaluator = dict(type='mmpretrain.Accuracy')
    runner = bare_runner(cfg)
    runner.model = torch.nn.DataParallel(SegTTAModel(module=runner.model))
    with pytest.raises(PreflightError, match='Accuracy cannot read the predictions of EncoderDecoder'):
        check_metrics(runner)


class CustomMetric(IoUMetric):
    def compute_metrics(self, results):
        return {'mAny': 1.0}


def test_custom_metrics_are_not_checked():
    runner = bare_runner(read(SEGMENTOR))
    runner._val_loop.evaluator.metrics.append(CustomMetric())
    runner._hooks[0].save_best[:] = ['mAny']
    check_metrics(runner)


def test_names_equal_those_of_an_evaluation(sample_data):
    """If this fails, OpenMMLab has renamed metrics."""
    from mmdet.evaluation import CocoMetric

    metric = CocoMetric(ann_file=str(sample_data / 'coco/annotations/instances_val2017.json'), classwise=True)
    metric.dataset_meta = dict(classes=tuple('0123456789'))
    names = metric_names(SimpleNamespace(metrics=[metric]))
    box = dict(
        bboxes=torch.tensor([[0.0, 0.0, 9.0, 9.0]]), scores=torch.ones(1), labels=torch.zeros(1).long()
    )
    image = metric._coco_api.get_img_ids()[0]
    metric.process({}, [dict(pred_instances=box, img_id=image, ori_shape=(9, 9))])
    assert sorted(metric.evaluate(1)) == sorted(names)

    metric = IoUMetric(iou_metrics=['mIoU', 'mFscore'], prefix='a')
    metric.dataset_meta = dict(classes=('x', 'y'))
    names = metric_names(SimpleNamespace(metrics=[metric]))
    labels = dict(data=torch.tensor([[[0, 1]]]))
    metric.process({}, [dict(pred_sem_seg=labels, gt_sem_seg=labels)])
    assert list(metric.evaluate(1)) == names
