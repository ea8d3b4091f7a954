"""Intermediate supervision of columns as an option of any detector or segmentor.

Letters: m supervised columns, i = 0..m-1; B batch, c, H and W channels and size of the images.
"""

import copy
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Iterator, Sequence

from mmengine.model import BaseModel, BaseModule, ModuleDict, ModuleList
from mmengine.registry import MODELS
from torch import Tensor, nn

from revcol_mm.any_module import AnyModule

from .backbones import ColumnBackbone
from .compound_loss import (
    compound_weights,
    levelwise_decoder,
    quarter_columns,
    reconstruction_loss,
    require_mean_and_std,
)
from .layers import init_layer


class ColumnSupervision(BaseModule):
    """Losses of columns before the last one: image reconstruction, and the task's loss with additional heads.

    The weights shift along the columns, see :mod:`revcol_mm.models.compound_loss`::

        sum_{i<m} (1 - i/m) * reconstruction_weight * BCE(decoded_i, image)
                  + (i+1)/(m+1) * task_weight * losses of head_i

    With the backbone's ``save_memory``, no column is stored for it and decoders run again in backward; the
    activations of the heads are stored.

    Args:
        backbone: The backbone whose columns are supervised. It does not become a submodule.
        data_preprocessor: The model's data preprocessor; its ``mean`` and ``std`` convert inputs to images.
        columns: Indices of the supervised columns in ascending order, without the last column. None: the
            ends of the first three quarters, as published; then N must be a multiple of 4.
        reconstruction_weight: Weight of reconstructing the image from the last level that the backbone
            returns. 0: no decoders.
        head: Config of a head with the ``loss`` method of MMSegmentation's or MMDetection's heads, built once
            per column. It reads the same levels as the model's own head. None: no heads.
        neck: Config of a neck before the head, such as FPN, built once per column. None: no neck.
        task_weight: Weight of the heads' losses.

    Raises:
        ValueError: If an argument is invalid.
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
        columns = quarter_columns(backbone.num_columns) if columns is None else list(columns)
        if not columns or columns != sorted(set(columns) & set(range(backbone.num_columns - 1))):
            raise ValueError(
                f'supervision: columns takes indices from 0 to {backbone.num_columns - 2} in ascending '
                f'order, got {columns}'
            )
        if min(reconstruction_weight, task_weight) < 0:
            raise ValueError(
                'supervision: reconstruction_weight and task_weight must not be negative, got '
                f'{reconstruction_weight} and {task_weight}'
            )
        if head is None and (not reconstruction_weight or neck is not None or task_weight != 1):
            raise ValueError(
                'supervision needs a reconstruction_weight, a head, or both; neck and task_weight need a head'
            )
        if reconstruction_weight:
            require_mean_and_std(data_preprocessor)
        self.columns = columns
        self.reconstruction_weight, self.task_weight = reconstruction_weight, task_weight
        self.parts = ModuleList()
        for _ in columns:
            part = ModuleDict()
            if reconstruction_weight:
                part['decoder'] = levelwise_decoder(backbone).apply(init_layer)
            for name, cfg in dict(neck=neck, head=head).items():
                if cfg is not None:
                    part[name] = MODELS.build(copy.deepcopy(cfg))
            self.parts.append(part)

    @contextmanager
    def keep_features(self, backbone: ColumnBackbone) -> Iterator[dict[int, dict[int, Tensor]]]:
        """Collect the levels that :meth:`loss` needs from the forward passes inside the context.

        Returns:
            For every supervised column, by its index, the levels that the backbone returns, by their indices;
            without heads, only the last of them.
        """
        kept: dict[int, dict[int, Tensor]] = {}
        levels = backbone.out_indices if 'head' in self.parts[0] else backbone.out_indices[-1:]

        def keep(index: int, column: nn.Module, inputs: Any, features: list[Tensor]) -> None:
            kept[index] = {level: features[level] for level in levels}

        hooks = [backbone.columns[i].register_forward_hook(partial(keep, i)) for i in self.columns]
        try:
            yield kept
        finally:
            for hook in hooks:
                hook.remove()

    def loss(
        self,
        model: AnyModule,
        features: dict[int, dict[int, Tensor]],
        inputs: Tensor,
        data_samples: Sequence[Any],
    ) -> dict[str, Tensor]:
        """Return the weighted losses of every supervised column.

        Args:
            model: The detector or segmentor.
            features: See :meth:`keep_features`.
            inputs: Normalised images, (B, c, H, W).
            data_samples: Data samples with the annotations that the heads need.

        Returns:
            'supervision.{column}.loss_rec' and 'supervision.{column}.{name in the head}'. Values of a head
            that are not losses, such as accuracies, are not weighted.
        """
        losses, backbone = {}, model.backbone
        # A segmentor passes its train_cfg to the loss of its heads, a detector does not.
        more = (model.train_cfg,) if hasattr(model, 'decode_head') else ()
        weights = compound_weights(len(self.columns), self.reconstruction_weight, self.task_weight)
        for index, part, (reconstruction_weight, task_weight) in zip(self.columns, self.parts, weights):
            levels = tuple(backbone.output(i, feature, inputs) for i, feature in features[index].items())
            if 'decoder' in part:
                losses[f'supervision.{index}.loss_rec'] = reconstruction_weight * reconstruction_loss(
                    part['decoder'], levels[-1], inputs, model.data_preprocessor, backbone.save_memory
                )
            if 'head' in part:
                if 'neck' in part:
                    levels = part['neck'](levels)
                for name, value in part['head'].loss(levels, data_samples, *more).items():
                    if 'loss' in name:
                        is_list = isinstance(value, list)
                        value = [task_weight * v for v in value] if is_list else task_weight * value
                    losses[f'supervision.{index}.{name}'] = value
        return losses


class SupervisedModel:
    """Mixin for a detector or segmentor whose part ``supervision`` adds to the training loss."""

    supervision: ColumnSupervision
    backbone: ColumnBackbone
    training: bool

    def loss(self, inputs: Tensor, data_samples: Sequence[Any]) -> dict[str, Any]:
        """Return the model's own losses and, in training mode, those of ``supervision``."""
        if not self.training:
            return super().loss(inputs, data_samples)  # type: ignore[misc]  # a mixin: the model's
        with self.supervision.keep_features(self.backbone) as features:
            losses = super().loss(inputs, data_samples)  # type: ignore[misc]  # likewise
        losses.update(self.supervision.loss(self, features, inputs, data_samples))
        return losses

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Let pickle build the class again, because it cannot find a class that was built at run time."""
        _, _, *state = tuple(super().__reduce_ex__(max(protocol, 2)))
        return _new_supervised_model, (type(self).__mro__[2],), *state


@cache
def _supervised_class(model_class: Any) -> Any:
    """Return the subclass with supervision. It keeps the name, by which tools recognise the kind of model."""
    names = {'__module__': model_class.__module__}
    return type(model_class.__name__, (SupervisedModel, model_class), names)


def _new_supervised_model(model_class: Any) -> Any:
    supervised_class = _supervised_class(model_class)
    return supervised_class.__new__(supervised_class)


@MODELS.register_module(name='SupervisedColumns')
def build_supervised_model(model_type: str, supervision: dict, **model_cfg: Any) -> BaseModel:
    """Build a detector or segmentor with intermediate supervision of its columns.

    The model's class is replaced by a subclass, because a wrapper would hide the model's type from
    evaluation, inferencers and export. The function is registered as a model type for configs.

    Args:
        model_type: Type of the detector or segmentor.
        supervision: Arguments of :class:`ColumnSupervision`, without ``backbone`` and ``data_preprocessor``.
        model_cfg: The model's other arguments.

    Raises:
        ValueError: If the model's backbone is not made of columns.

    Examples:
        >>> model = dict(
        ...     type='SupervisedColumns',
        ...     model_type='EncoderDecoder',  # the rest of the config is unchanged
        ...     supervision=dict(reconstruction_weight=0.3))
    """
    model = MODELS.build(dict(type=model_type, **model_cfg))
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, ColumnBackbone):
        raise ValueError(
            'SupervisedColumns needs a model whose backbone is made of columns, such as RevCol, '
            f'got {type(backbone)}'
        )
    model.__class__ = _supervised_class(model.__class__)
    model.supervision = ColumnSupervision(backbone, model.data_preprocessor, **supervision)
    return model
