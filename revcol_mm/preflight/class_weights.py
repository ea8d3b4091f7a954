"""Check the class weights of losses."""

import numpy as np
import torch
from mmengine.logging import MMLogger
from torch import nn

from revcol_mm.errors import PreflightError


def check_class_weights(model: nn.Module) -> None:
    """Compare the number of class weights of every loss with the outputs of its head.

    Raises:
        PreflightError: For the first loss with another number of weights.
    """
    heads = {'': model}  # the innermost module with num_classes around each module
    for path, module in model.named_modules():
        parent = heads[path.rpartition('.')[0]] if path else model
        heads[path] = module if isinstance(getattr(module, 'num_classes', None), int) else parent
        num_outputs, meaning = _num_outputs(heads[path], module, path)
        for key in ('class_weight', 'alpha', 'pos_weight'):
            weights = getattr(module, key, None)
            if num_outputs and isinstance(weights, (list, tuple, np.ndarray)) and len(weights) != num_outputs:
                raise PreflightError(
                    f'{path}.{key} of the model has {len(weights)} numbers; it needs {num_outputs}, one for '
                    f'each {meaning}'
                )


def _num_outputs(head: nn.Module, loss: nn.Module, path: str) -> tuple[int, str]:
    """Return how many weights a loss takes, and what each is for; 0 if that is not known."""
    packages = {base.__module__.partition('.')[0] for base in type(head).__mro__}
    uses_sigmoid = getattr(loss, 'use_sigmoid', False)
    if head is loss or not isinstance(getattr(head, 'num_classes', None), int):
        return 0, ''
    if 'mmdet' in packages and path.endswith('loss_cls') and not hasattr(loss, 'get_cls_channels'):
        if uses_sigmoid:
            return head.num_classes, 'class'
        return head.num_classes + 1, 'class and the last for the background'
    # The list of a binary cross-entropy is not one of class weights.
    is_binary = uses_sigmoid and 'CrossEntropy' in type(loss).__name__
    if 'mmseg' in packages and 'loss_decode' in path and not is_binary:
        return head.out_channels, 'class'
    if 'mmpretrain' in packages:
        return head.num_classes, 'class'
    return 0, ''


def check_class_weight_with_ignored_pixels(model: nn.Module) -> None:
    """Warn of losses that fail at the first ignored pixel.

    In MMSegmentation 1.2.2 this is CrossEntropyLoss with ``class_weight`` (its issue 3734). Its error says
    only that an index is out of bounds and, on a GPU, ends the process.
    """
    for path, head in model.named_modules():
        if not hasattr(head, 'loss_decode') or not hasattr(head, 'ignore_index'):
            continue
        losses = head.loss_decode if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]
        for loss in losses:
            # Other losses, such as OhemCrossEntropy, take other arguments, and do not have this bug.
            criterion = getattr(getattr(loss, 'cls_criterion', None), '__name__', '')
            if criterion != 'cross_entropy' or loss.class_weight is None:
                continue
            scores = torch.zeros(1, len(loss.class_weight), 1, 1, device='cpu')
            labels = torch.full((1, 1, 1), head.ignore_index, device='cpu')
            try:
                loss(scores, labels, ignore_index=head.ignore_index)
            except IndexError:
                MMLogger.get_current_instance().warning(
                    f"{path}.loss_decode: MMSegmentation's {type(loss).__name__} with class_weight fails at "
                    f'the first ignored pixel ({head.ignore_index}), in padding or in the data: remove '
                    "class_weight, or set reduction='sum' and loss_weight to 1 / (pixels of a batch)"
                )
