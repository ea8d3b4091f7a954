"""Image classification with RevCol, with or without intermediate supervision (arXiv 2212.11696).

Letters: B batch, c, H and W channels and size of the images, N columns, C channels of the classified level,
K classes.
"""

from typing import Any, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from revcol_mm.any_module import AnyModule

from ..backbones import ColumnBackbone
from ..compound_loss import (
    compound_weights,
    levelwise_decoder,
    quarter_columns,
    reconstruction_loss,
    require_mean_and_std,
)
from ..layers import PixelShuffleDecoder, init_layer

MAX_LEVELWISE_CLASSES = 1000  # RevCol official code: with more classes, decoders are single layers


class PooledClassifier(nn.Module):
    """Global average pooling, LayerNorm and a linear layer; parameter names are the published ones."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.LayerNorm(in_channels, eps=1e-6), nn.Linear(in_channels, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> logits (B, K)."""
        return self.classifier(x.mean((2, 3)))


@MODELS.register_module()
class RevColClassifier(BaseModel):
    """RevCol and its classification heads, as a model for MMPretrain's data, metrics and hooks.

    Without supervision, one head reads the last column and is trained with cross entropy. With supervision
    there are four heads, after columns N/4, N/2, 3N/4 and N, and three decoders that reconstruct the image
    from the inputs of the first three heads. The loss is::

        CE(logits_3) + sum_{i<3} (1 - i/3) * w_rec * BCE(decoded_i, image) + (i+1)/4 * w_cls * CE(logits_i)

    Except for the prefix 'backbone.', state dict keys are the published ones: ``cls.*`` without supervision,
    ``cls_blocks.{0..3}.*`` and ``decoder_blocks.{0..2}.*`` with it.

    Args:
        backbone: A RevCol or another ColumnBackbone, or its config. The last of its ``out_indices`` is the
            level that is classified. Others need parameters of their own in some networks, such as norms,
            which would get no gradient.
        num_classes: Classes K. Up to 1000, decoders upsample level by level; above, they are single layers.
        supervision: The weights ``reconstruction_weight`` w_rec and ``classification_weight`` w_cls
            (published: 3.0 and 0.7). None: no intermediate supervision.
        label_smoothing: Label smoothing in [0, 1). Also applied to soft labels, as from Mixup and CutMix.
        head_init_scale: Factor on the initial weights of the heads. Published for fine-tuning: 0.001.
        data_preprocessor: A config's default type is MMPretrain's ClsDataPreprocessor, with K classes.
            Supervision needs ``mean`` and ``std``.
        init_cfg: See MMEngine's BaseModule. Published weights are loaded by the backbone's ``init_cfg``.

    Raises:
        ValueError: If an argument is invalid; with supervision, also if N is not a multiple of 4 or the data
            preprocessor does not normalise.

    Note:
        This is no subclass of MMPretrain's ImageClassifier because it must be importable without MMPretrain.
        With the backbone's ``save_memory``, decoders run again in backward: supervision stores nothing larger
        than the inputs of the heads, (B, C, h, w).
    """

    def __init__(
        self,
        backbone: ColumnBackbone | dict,
        num_classes: int,
        supervision: dict[str, float] | None = None,
        label_smoothing: float = 0.0,
        head_init_scale: float = 1.0,
        data_preprocessor: nn.Module | dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        if isinstance(data_preprocessor, dict):
            default = {'type': 'mmpretrain.ClsDataPreprocessor', 'num_classes': num_classes}
            data_preprocessor = {**default, **data_preprocessor}
        super().__init__(data_preprocessor, init_cfg)
        if isinstance(backbone, dict):
            backbone = MODELS.build(backbone)
        if not isinstance(backbone, ColumnBackbone):
            raise ValueError(
                f'RevColClassifier takes a backbone of columns, such as RevCol, got {type(backbone)}'
            )
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f'num_classes must be a positive integer, got {num_classes}')
        if not 0 <= label_smoothing < 1:
            raise ValueError(f'label_smoothing must be in [0, 1), got {label_smoothing}')
        self.backbone = backbone
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.supervision = supervision
        self.columns = [backbone.num_columns - 1]  # read by the heads

        in_channels = backbone.out_channels[-1]
        decoders = []
        if supervision is None:
            self.cls = PooledClassifier(in_channels, num_classes)
        else:
            weights = ['classification_weight', 'reconstruction_weight']
            if sorted(supervision) != weights:
                raise ValueError(f'supervision takes {" and ".join(weights)}, got {sorted(supervision)}')
            require_mean_and_std(self.data_preprocessor)
            self.columns = [*quarter_columns(backbone.num_columns), *self.columns]
            decoders = [self._build_decoder() for _ in self.columns[:-1]]
            self.cls_blocks = nn.ModuleList(PooledClassifier(in_channels, num_classes) for _ in self.columns)
        self.decoder_blocks = nn.ModuleList(decoders)
        for module in (*self.heads, *decoders):
            module.apply(init_layer)
        for head in self.heads:
            for param in head.classifier[1].parameters():
                param.data.mul_(head_init_scale)

    def _build_decoder(self) -> nn.Module:
        backbone = self.backbone
        if self.num_classes <= MAX_LEVELWISE_CLASSES:
            return levelwise_decoder(backbone)
        return PixelShuffleDecoder(backbone.out_channels[-1], backbone.out_strides[-1], backbone.in_channels)

    @property
    def heads(self) -> list[AnyModule]:
        """The classification heads. The last one reads the last column and makes the prediction."""
        return [self.cls] if self.supervision is None else list(self.cls_blocks)

    def supervised_features(self, inputs: Tensor) -> list[Tensor]:
        """Return the inputs of the heads, (B, C, h, w) each: the classified level of their columns."""
        level = self.backbone.out_indices[-1]
        columns = enumerate(self.backbone.forward_columns(inputs))
        return [
            self.backbone.output(level, features[level], inputs)
            for index, features in columns
            if index in self.columns
        ]

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """Run the model in one of MMEngine's modes.

        Args:
            inputs: Normalised images, (B, c, H, W).
            data_samples: MMPretrain's data samples, one per image.
            mode: 'tensor', 'predict' or 'loss'.

        Returns:
            'tensor': logits of the last column, (B, K); 'predict': see :meth:`predict`; 'loss': see
            :meth:`loss`.

        Raises:
            ValueError: If the mode is unknown.
        """
        if mode == 'tensor':
            return self.heads[-1](self.backbone(inputs)[-1])
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        raise ValueError(f"mode must be 'tensor', 'predict' or 'loss', got {mode!r}")

    def predict(self, inputs: Tensor, data_samples: Sequence[Any] | None = None) -> list[Any]:
        """Set ``pred_score``, (K,), and ``pred_label``, (1,), of every sample from the last column.

        Args:
            inputs: Normalised images, (B, c, H, W).
            data_samples: Samples to update. None: create new ones.

        Returns:
            The samples.
        """
        scores = self(inputs).softmax(1)
        if data_samples is None:
            from mmpretrain.structures import DataSample

            data_samples = [DataSample() for _ in scores]
        return [
            sample.set_pred_score(score).set_pred_label(score.argmax(0, keepdim=True))
            for sample, score in zip(data_samples, scores)
        ]

    def loss(self, inputs: Tensor, data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Return the weighted terms of the loss.

        Args:
            inputs: Normalised images, (B, c, H, W), after batch augmentation.
            data_samples: With ``gt_score``, (K,), as from Mixup and CutMix, or ``gt_label``, (1,).

        Returns:
            'loss_cls' of the last column and, with supervision, 'loss_rec_i' and 'loss_cls_i' for i < 3.
        """
        if 'gt_score' in data_samples[0]:
            target = torch.stack([sample.gt_score for sample in data_samples])
        else:
            target = torch.cat([sample.gt_label for sample in data_samples])

        def classification_loss(head: nn.Module, feature: Tensor) -> Tensor:
            return F.cross_entropy(head(feature), target, label_smoothing=self.label_smoothing)

        losses = {}
        *features, last = self.supervised_features(inputs)
        if self.supervision is not None:
            factors = self.supervision['reconstruction_weight'], self.supervision['classification_weight']
            for i, weights in enumerate(compound_weights(len(features), *factors)):
                losses[f'loss_rec_{i}'] = weights[0] * reconstruction_loss(
                    self.decoder_blocks[i],
                    features[i],
                    inputs,
                    self.data_preprocessor,
                    recompute=self.backbone.save_memory,
                )
                losses[f'loss_cls_{i}'] = weights[1] * classification_loss(self.heads[i], features[i])
        losses['loss_cls'] = classification_loss(self.heads[-1], last)
        return losses
