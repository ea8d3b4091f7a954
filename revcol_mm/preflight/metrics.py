"""Check that the evaluators of a run compute the metrics that its hooks and schedulers monitor."""

import copy

import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.runner import Runner
from torch import nn

from revcol_mm.errors import PreflightError
from revcol_mm.unwrapped import unwrapped

from .schedule import schedulers

COCO_ITEMS = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
COCO_RECALLS = ['AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000']
COMPUTED_FROM_SCORES = {
    'mmpretrain.Accuracy',
    'mmpretrain.SingleLabelMetric',
    'mmpretrain.MultiLabelMetric',
    'mmpretrain.AveragePrecision',
}


def check_metrics(runner: Runner) -> None:
    """Check that evaluators fit the model, and compute what hooks and schedulers monitor in validation.

    Metrics of unknown classes are not checked, because their names are not known before evaluation.

    Raises:
        PreflightError: If a metric fails with the classes, or cannot read the model's predictions; if two
            metrics have the same name; or if ``save_best`` or a ``monitor`` is not the name of a metric.
    """
    for loop in (runner._val_loop, runner._test_loop):
        if not hasattr(loop, 'evaluator'):
            continue
        for metric in loop.evaluator.metrics:
            _check_task(metric, unwrapped(runner.model))
        names = metric_names(loop.evaluator)
        if names and loop is runner._val_loop:
            _check_monitored(runner, names)


def metric_names(evaluator: Evaluator) -> list[str] | None:
    """Return the names of the metrics that an evaluator will compute, in order, or None if any is unknown.

    Raises:
        PreflightError: If a metric fails with the classes, or two have the same name.
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
    """Return the names without the prefix, where possible by evaluating the metric on tiny inputs."""
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
            results = metric.total_area_to_metrics(*areas, metric.metrics, metric.nan_to_num, metric.beta)
            return [name if name == 'aAcc' else f'm{name}' for name in results]
        if kind == 'revcol_mm.ConfusionMetric':
            return list(copy.copy(metric).compute_metrics([torch.eye(len(classes) + 1)]))
        if kind in COMPUTED_FROM_SCORES:
            score = torch.eye(len(classes))[0]
            result = dict(pred_score=score, gt_score=score, gt_label=torch.tensor([0]))
            return list(metric.compute_metrics([result]))
    except Exception as error:  # the error that would be raised after hours of training
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
    return list(dict.fromkeys(names))  # class-wise precisions of boxes and masks have the same names


def _check_monitored(runner: Runner, names: list[str]) -> None:
    monitored = []
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            monitored += [('save_best of CheckpointHook', key) for key in hook.save_best]
            if 'auto' in hook.save_best:
                _check_rule(hook, names[0])
        elif isinstance(hook, EarlyStoppingHook):
            monitored.append((f'monitor of {type(hook).__name__}', hook.monitor))
    for _, scheduler in schedulers(runner):
        if getattr(scheduler, 'need_val_args', False):
            monitored.append((f'monitor of {type(scheduler).__name__}', scheduler.monitor))
    for where, key in monitored:
        if key != 'auto' and key not in names:
            raise PreflightError(
                f'{where} is {key!r}, but val_evaluator gives {", ".join(names)}: use one of these, or '
                'change the evaluator'
            )


def _check_rule(hook: CheckpointHook, name: str) -> None:
    """Check that MMEngine knows whether to maximise the first metric, which 'auto' selects."""
    try:
        CheckpointHook(
            save_best=name, rule=hook.rules[0], greater_keys=hook.greater_keys, less_keys=hook.less_keys
        )
    except ValueError as error:
        raise PreflightError(
            f"save_best='auto' of CheckpointHook is {name!r}, the first metric: set rule='greater' or 'less'"
        ) from error


def _check_task(metric: BaseMetric, model: nn.Module) -> None:
    """Check that a metric can read what a model predicts. Only known classes are checked."""
    name, package = type(metric).__name__, type(metric).__module__.partition('.')[0]
    bases = {base.__name__ for base in type(model).__mro__}
    fits, predicts_masks = True, True
    if 'BaseSegmentor' in bases:
        fits = package not in ('mmdet', 'mmpretrain') or name == 'SemSegMetric'
    elif type(model).__name__ in ('ImageClassifier', 'RevColClassifier'):
        fits = package not in ('mmdet', 'mmseg')
    elif 'BaseDetector' in bases:
        fits = package != 'mmpretrain' and (name != 'IoUMetric' or hasattr(model, 'semantic_head'))
        if 'DetectionTransformer' in bases:
            predicts_masks = False
        elif 'TwoStageDetector' in bases:
            predicts_masks = getattr(getattr(model, 'roi_head', None), 'with_mask', True)
    if not fits:
        raise PreflightError(
            f'evaluator {name} cannot read the predictions of {type(model).__name__}: use one for its task'
        )
    if name == 'CocoMetric' and 'segm' in metric.metrics and not predicts_masks:
        raise PreflightError(
            f"metric 'segm' of CocoMetric needs masks, which {type(model).__name__} does not predict: set "
            "metric='bbox'"
        )
