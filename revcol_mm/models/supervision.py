"""Intermediate supervision of RevCol's columns as an option of any detector or segmentor.

Letters: m supervised columns, i = 0..m-1; B batch, c, H and W channels and size of the images.
"""

import copy
import inspect
from functools import partial
from typing import Any, Sequence

import torch
from mmengine.model import BaseModel, BaseModule, ModuleDict, ModuleList
from mmengine.registry import MODELS
from torch import Tensor, nn

from .backbones import ColumnBackbone
from .layers import LevelwiseDecoder, init_layer, reconstruction_loss


class ColumnSupervision(BaseModule):
    """Losses of columns before the last: early ones are asked for the image, late ones for the task.

    The weights shift along the columns as in the compound loss for classification (RevCol paper, section
    2.3, and official code)::

        sum_{i<m} (1 - i/m) * reconstruction_weight * BCE(decoded_i, image)
                  + (i+1)/(m+1) * task_weight * head_i's losses

    It is a part of the model named ``supervision``, called by hooks: nothing else of the model changes, and
    evaluation, prediction and export do not run it. With the backbone's ``save_memory`` no column is stored
    for it, and decoders run again in backward; the heads' own activations are stored.

    Args:
        backbone: The backbone whose columns are supervised. It is not made a part of this module.
        data_preprocessor: The model's; its ``mean`` and ``std`` turn inputs back into images.
        columns: Indices of the supervised columns, in ascending order, the last one excluded. None: after
            each quarter, as published; N a multiple of 4.
        reconstruction_weight: Of the decoders, which rebuild the image from a column's last level. 0: there
            are none.
        head: Config of a head with MMSegmentation's or MMDetection's ``loss(features, data_samples)``, one
            for each column. It reads the same levels as the model's own. None: there are none.
        neck: Config of a neck before the head, such as FPN, one for each column. None: there is none.
        task_weight: Of the heads' losses.

    Raises:
        ValueError: If an argument is none of the above.
    """

    def __init__(
        self,
        backbone: ColumnBackbone,
        data_preprocessor: nn.Module,
        columns: Sequence[int] | None = None,
        reconstruction_weight: float = 0.0,
        head: dict | None = None,
        neck: dict | None = None,
        task_weight: float = 1.0,
    ) -> None:
        super().__init__()
        num_columns = backbone.num_columns
        if columns is None:
            if num_columns % 4:
                raise ValueError(
                    f'supervision: name the columns; there are {num_columns}, no multiple of 4, to choose '
                    'one after each quarter'
                )
            columns = [quarter * num_columns // 4 - 1 for quarter in (1, 2, 3)]
        if not columns or list(columns) != sorted(set(columns) & set(range(num_columns - 1))):
            raise ValueError(
                f'supervision: columns takes indices from 0 to {num_columns - 2} in ascending order, '
                f'got {list(columns)}'
            )
        if min(reconstruction_weight, task_weight) < 0:
            raise ValueError(
                f'supervision: weights are not negative, got {reconstruction_weight} and {task_weight}'
            )
        if head is None and (not reconstruction_weight or neck is not None or task_weight != 1):
            raise ValueError(
                'supervision needs a reconstruction_weight, a head, or both; a neck and a task_weight belong '
                'to a head'
            )
        if reconstruction_weight and not hasattr(data_preprocessor, 'mean'):
            raise ValueError(
                'supervision rebuilds the image from the normalised input and needs a data_preprocessor '
                f'with mean and std, got {type(data_preprocessor).__name__} without'
            )
        self.reconstruction_weight = reconstruction_weight
        self.task_weight = task_weight
        self.columns = tuple(columns)
        self.parts = ModuleList()
        for _ in columns:
            part = ModuleDict()
            if reconstruction_weight:
                decoder = LevelwiseDecoder(backbone.channels, backbone.in_channels)
                part['decoder'] = decoder.apply(init_layer)
            for name, cfg in dict(neck=neck, head=head).items():
                if cfg is not None:
                    part[name] = MODELS.build(copy.deepcopy(cfg))
            self.parts.append(part)
        self._features: dict[int, Sequence[Tensor]] = {}

    def attach(self, model: nn.Module) -> None:
        """Become the part ``supervision`` of a model and add to what it returns in mode 'loss'."""
        model.supervision = self
        for index in self.columns:
            model.backbone.columns[index].register_forward_hook(partial(self._keep_features, index))
        model.register_forward_hook(self._add_losses, with_kwargs=True)

    def _keep_features(self, index: int, column: nn.Module, inputs: Any, features: list[Tensor]) -> None:
        if self.training and torch.is_grad_enabled():
            self._features[index] = features if 'head' in self.parts[0] else features[-1:]

    def _add_losses(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        features = [self._features.pop(index) for index in self.columns if index in self._features]
        call = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        if features and call.get('mode') == 'loss':
            output.update(self.loss(model, features, call['inputs'], call['data_samples']))
        return output

    def loss(
        self,
        model: nn.Module,
        features: Sequence[Sequence[Tensor]],
        inputs: Tensor,
        data_samples: Sequence[Any],
    ) -> dict[str, Tensor]:
        """The weighted losses of every supervised column.

        Args:
            model: The detector or segmentor.
            features: Of every supervised column all levels, as ``forward_columns`` yields them, or,
                without heads, the last one.
            inputs: Normalised images, (B, c, H, W).
            data_samples: With the annotations that the heads want.

        Returns:
            'supervision.{column}.loss_rec' and 'supervision.{column}.{name in the head}'. What a head reports
            besides losses, such as accuracies, has no weight.
        """
        losses = {}
        backbone, num_supervised = model.backbone, len(self.columns)
        for i, (index, part, levels) in enumerate(zip(self.columns, self.parts, features)):
            if 'decoder' in part:
                weight = (1 - i / num_supervised) * self.reconstruction_weight
                losses[f'supervision.{index}.loss_rec'] = weight * reconstruction_loss(
                    part['decoder'], levels[-1], inputs, model.data_preprocessor, backbone.save_memory
                )
            if 'head' in part:
                head = part['head']
                weight = (i + 1) / (num_supervised + 1) * self.task_weight
                levels = tuple(
                    backbone.finish(level, levels[level]).contiguous() for level in backbone.out_indices
                )
                if 'neck' in part:
                    levels = part['neck'](levels)
                # MMSegmentation's heads are handed the segmentor's train_cfg, which they do not use.
                more = [{}] if 'train_cfg' in inspect.signature(head.loss).parameters else []
                for name, value in head.loss(levels, data_samples, *more).items():
                    if 'loss' in name:
                        value = [weight * v for v in value] if isinstance(value, list) else weight * value
                    losses[f'supervision.{index}.{name}'] = value
        return losses


@MODELS.register_module(name='SupervisedColumns')
def supervise_columns(model_type: str, supervision: dict, **model_cfg: Any) -> BaseModel:
    """Build a model of another type with intermediate supervision, see :class:`ColumnSupervision`.

    Args:
        model_type: Type of the detector or segmentor.
        supervision: Arguments of :class:`ColumnSupervision` but the first two.
        model_cfg: The model's other arguments.

    Raises:
        ValueError: If the model's backbone is not made of columns.

    Examples:
        >>> model = dict(
        ...     type='SupervisedColumns',
        ...     model_type='EncoderDecoder',  # the rest of the model as it was
        ...     supervision=dict(reconstruction_weight=0.3))
    """
    model = MODELS.build(dict(type=model_type, **model_cfg))
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, ColumnBackbone):
        raise ValueError(
            'SupervisedColumns needs a model whose backbone is made of columns, such as RevCol, '
            f'got {type(backbone)}'
        )
    ColumnSupervision(backbone, model.data_preprocessor, **supervision).attach(model)
    return model
