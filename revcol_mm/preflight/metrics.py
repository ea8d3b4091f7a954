"""Names of metrics that a run watches, which its evaluators must give."""

import copy

import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.runner import Runner
from torch import nn

from revcol_mm.errors import PreflightError

COCO_ITEMS = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
COCO_RECALLS = ['AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000']


def check_metrics(runner: Runner) -> None:
    """Check what the validation's evaluators will give against what hooks and schedulers read.

    Raises:
        PreflightError: If an evaluator cannot work with these classes or this model, two give the same
            names, or ``save_best``, or a ``monitor``, is none of the names. Nothing is said if they cannot
            be known.
    """
    loops = [loop for loop in (runner._val_loop, runner._test_loop) if hasattr(loop, 'evaluator')]
    for loop in loops:
        for metric in loop.evaluator.metrics:
            _check_kind(metric, runner.model)
        names = metric_names(loop.evaluator)
        if names and loop is runner._val_loop:
            _check_watchers(runner, names)


def metric_names(evaluator: Evaluator) -> list[str] | None:
    """Names of the metrics that an evaluator will give, in order; None if they cannot all be known.

    Raises:
        PreflightError: If a metric cannot be computed with these classes, or two have the same name.
    """
    names: list[str] = []
    for metric in evaluator.metrics:
        own = _names(metric)
        if own is None:
            return None
        names += [f'{metric.prefix}/{name}' if metric.prefix else name for name in own]
    for name in names:
        if names.count(name) > 1:
            raise PreflightError(f'two evaluators give {name}: set another prefix for one of them')
    return names


def _names(metric: BaseMetric) -> list[str] | None:
    """Names without the prefix. Where a metric can be computed of next to nothing, it is asked."""
    kind = f'{type(metric).__module__.partition(".")[0]}.{type(metric).__name__}'
    classes = (metric.dataset_meta or {}).get('classes')
    if getattr(metric, 'format_only', False) or kind in ('mmengine.DumpResults', 'mmdet.DumpDetResults'):
        return []
    if kind == 'mmdet.CocoMetric':
        return _coco_names(metric, classes)
    if kind == 'revcol_mm.CommonestClassIoU':
        return ['mIoU']
    if classes is None:
        return None
    try:
        if kind == 'mmseg.IoUMetric':
            areas = [torch.ones(len(classes))] * 4
            given = metric.total_area_to_metrics(*areas, metric.metrics, metric.nan_to_num, metric.beta)
            return [name if name == 'aAcc' else f'm{name}' for name in given]
        if kind == 'revcol_mm.ConfusionMetric':
            return list(copy.copy(metric).compute_metrics([torch.eye(len(classes) + 1)]))
        if kind in (
            'mmpretrain.Accuracy',
            'mmpretrain.SingleLabelMetric',
            'mmpretrain.MultiLabelMetric',
            'mmpretrain.AveragePrecision',
        ):
            one = torch.eye(len(classes))[0]
            return list(
                metric.compute_metrics([dict(pred_score=one, gt_score=one, gt_label=torch.tensor([0]))])
            )
    except Exception as error:  # the same as after hours of training
        reason = ' '.join(str(error).split())
        raise PreflightError(
            f'{type(metric).__name__} of an evaluator fails with {len(classes)} classes: {reason}'
        ) from error
    return None


def _coco_names(metric: BaseMetric, classes: tuple[str, ...] | None) -> list[str] | None:
    names = []
    for kind in metric.metrics:
        if kind == 'proposal_fast':
            names += [f'AR@{number}' for number in metric.proposal_nums]
        elif kind == 'proposal':
            names += metric.metric_items or COCO_RECALLS
        else:
            if metric.classwise and classes is None:
                return None
            names += [f'{name}_precision' for name in classes or ()] if metric.classwise else []
            names += [f'{kind}_{item}' for item in metric.metric_items or COCO_ITEMS]
    return list(dict.fromkeys(names))  # precisions of boxes and of masks overwrite each other


def _check_watchers(runner: Runner, names: list[str]) -> None:
    watched = []
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            watched += [('save_best of CheckpointHook', key) for key in hook.save_best]
            if 'auto' in hook.save_best:
                _check_rule(hook, names[0])
        elif isinstance(hook, EarlyStoppingHook):
            watched.append((f'monitor of {type(hook).__name__}', hook.monitor))
    schedulers = runner.param_schedulers or []
    for group in schedulers.values() if isinstance(schedulers, dict) else [schedulers]:
        for scheduler in group:
            if getattr(scheduler, 'need_val_args', False):
                watched.append((f'monitor of {type(scheduler).__name__}', scheduler.monitor))
    for where, key in watched:
        if key != 'auto' and key not in names:
            raise PreflightError(
                f'{where} is {key!r}, but val_evaluator gives {", ".join(names)}: take one of these, or '
                'change the evaluator'
            )


def _check_rule(hook: CheckpointHook, name: str) -> None:
    """MMEngine takes the first metric for 'auto', and may not know whether more of it is better."""
    try:
        CheckpointHook(
            save_best=name, rule=hook.rules[0], greater_keys=hook.greater_keys, less_keys=hook.less_keys
        )
    except ValueError as error:
        raise PreflightError(
            f"save_best='auto' of CheckpointHook is {name!r}, the first metric: set rule='greater' or 'less'"
        ) from error


def _check_kind(metric: BaseMetric, model: nn.Module) -> None:
    """Check that a metric of OpenMMLab reads what a model of OpenMMLab, or this package, predicts."""
    model = getattr(model, 'module', model)
    name, package = type(metric).__name__, type(metric).__module__.partition('.')[0]
    kinds = {base.__name__ for base in type(model).__mro__}
    fits, boxes_alone = True, False
    if 'BaseSegmentor' in kinds:
        fits = package not in ('mmdet', 'mmpretrain') or name == 'SemSegMetric'
    elif type(model).__name__ in ('ImageClassifier', 'RevColClassifier'):
        fits = package not in ('mmdet', 'mmseg')
    elif 'BaseDetector' in kinds:
        fits = package != 'mmpretrain' and (name != 'IoUMetric' or hasattr(model, 'semantic_head'))
        boxes_alone = 'DetectionTransformer' in kinds or (
            'TwoStageDetector' in kinds and not getattr(getattr(model, 'roi_head', None), 'with_mask', True)
        )
    if not fits:
        raise PreflightError(
            f'evaluator {name} does not read what {type(model).__name__} predicts: take one of its task'
        )
    if name == 'CocoMetric' and 'segm' in metric.metrics and boxes_alone:
        raise PreflightError(
            f"metric 'segm' of CocoMetric needs masks, which {type(model).__name__} does not predict: set "
            "metric='bbox'"
        )
