"""Image classification with RevCol, with or without the paper's intermediate supervision (arXiv 2212.11696).

Letters: B batch, c, H and W channels and size of the images, N columns, C channels of the level that is
classified, K classes.
"""

from itertools import islice
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..backbones import ColumnBackbone
from ..layers import LevelwiseDecoder, PixelShuffleDecoder, init_layer, reconstruction_loss

NUM_SUPERVISED = 4  # columns with a head, the last one included (RevCol official code)
MAX_LEVELWISE_CLASSES = 1000  # with more, the decoders are single layers (RevCol official code)


class PooledClassifier(nn.Module):
    """Global average pooling, LayerNorm and Linear; parameter names are the published ones.

    Args:
        in_channels: Channels C.
        num_classes: Classes K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.LayerNorm(in_channels, eps=1e-6), nn.Linear(in_channels, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, K)."""
        return self.classifier(x.mean((2, 3)))


@MODELS.register_module()
class RevColClassifier(BaseModel):
    """RevCol and its classification heads, as a model for MMPretrain's data, metrics and hooks.

    Without supervision one head reads the last column, and the loss is its cross entropy. With it there are
    k = 4 heads, after columns N/4, N/2, 3N/4 and N, and m = 3 decoders that rebuild the image from what the
    first three of them read. The compound loss asks early columns for the image, late ones for the class::

        CE(logits_k-1) + sum_{i<m} (1 - i/m) * w_rec * BCE(decoded_i, image)
                                   + (i+1)/k * w_cls * CE(logits_i)

    Apart from the backbone's, which here begin with 'backbone.', names in ``state_dict()`` are the published
    ones: ``cls.*`` without supervision, with it ``cls_blocks.{0..3}.*`` and ``decoder_blocks.{0..2}.*``.

    Args:
        backbone: A RevCol or other ColumnBackbone, or its config. The last of its ``out_indices`` is the
            level that is classified.
        num_classes: Classes K. Up to 1000 the decoders are level-wise, above that a single layer.
        supervision: The weights ``reconstruction_weight`` w_rec and ``classification_weight`` w_cls
            (published: 3.0 and 0.7). None: no intermediate supervision.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1). Soft labels, as from
            mixup and cutmix, are smoothed likewise.
        head_init_scale: Factor on the initial weights of the heads. Published for fine-tuning: 0.001.
        data_preprocessor: Its ``mean`` and ``std`` turn inputs back into images. The default type of a config
            is MMPretrain's ClsDataPreprocessor, with K classes.
        init_cfg: As in MMEngine. To start from published weights, see the backbone's.

    Raises:
        ValueError: If an argument is none of the above, or supervision is asked for and N is no multiple of 4
            or the data preprocessor does not normalise.

    Note:
        With the backbone's ``save_memory`` the decoders, too, run again in backward: of what supervision
        computes, nothing larger than the heads' inputs, (B, C, h, w), waits for it.
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
            raise ValueError(f'num_classes takes a whole number from 1 on, got {num_classes}')
        if not 0 <= label_smoothing < 1:
            raise ValueError(f'label_smoothing must be in [0, 1), got {label_smoothing}')
        self.backbone = backbone
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing

        in_channels = backbone.out_channels[-1]
        decoders = []
        if supervision is None:
            self.cls = PooledClassifier(in_channels, num_classes)
        else:
            self._check_supervision(supervision)
            self.reconstruction_weight = supervision['reconstruction_weight']
            self.classification_weight = supervision['classification_weight']
            self.cls_blocks = nn.ModuleList(
                PooledClassifier(in_channels, num_classes) for _ in range(NUM_SUPERVISED)
            )
            for _ in range(NUM_SUPERVISED - 1):
                if num_classes <= MAX_LEVELWISE_CLASSES:
                    channels = backbone.channels[: backbone.out_indices[-1] + 1]
                    decoders.append(LevelwiseDecoder(channels, backbone.in_channels))
                else:
                    stride = backbone.out_strides[-1]
                    decoders.append(PixelShuffleDecoder(in_channels, stride, backbone.in_channels))
        self.decoder_blocks = nn.ModuleList(decoders)
        for module in (*self.heads, *decoders):
            module.apply(init_layer)
        for head in self.heads:
            for param in head.classifier[1].parameters():
                param.data.mul_(head_init_scale)

    def _check_supervision(self, supervision: dict[str, float]) -> None:
        weights = {'reconstruction_weight', 'classification_weight'}
        if set(supervision) != weights:
            raise ValueError(f'supervision takes {" and ".join(sorted(weights))}, got {sorted(supervision)}')
        if self.backbone.num_columns % NUM_SUPERVISED:
            raise ValueError(
                f'intermediate supervision needs a multiple of {NUM_SUPERVISED} columns, '
                f'got {self.backbone.num_columns}'
            )
        if not hasattr(self.data_preprocessor, 'mean'):
            raise ValueError(
                'intermediate supervision rebuilds the image from the normalised input and needs a '
                f'data_preprocessor with mean and std, got {type(self.data_preprocessor).__name__} without'
            )

    @property
    def heads(self) -> list[PooledClassifier]:
        """The classification heads; the last one, which predicts, reads the last column."""
        return list(self.cls_blocks) if self.decoder_blocks else [self.cls]

    def supervised_features(self, inputs: Tensor) -> list[Tensor]:
        """What the heads read, (B, C, h, w) for each: the classified level of evenly spaced columns."""
        interval = self.backbone.num_columns // len(self.heads)
        level = self.backbone.out_indices[-1]
        columns = islice(self.backbone.forward_columns(inputs), interval - 1, None, interval)
        return [features[level] for features in columns]

    def forward(self, inputs: Tensor, data_samples: Sequence[Any] | None = None, mode: str = 'tensor') -> Any:
        """MMEngine's entry point.

        Args:
            inputs: Normalised images, (B, c, H, W).
            data_samples: MMPretrain's, one for each image.
            mode: 'tensor', 'predict' or 'loss'.

        Returns:
            'tensor': logits of the last column, (B, K); 'predict': see :meth:`predict`; 'loss': see
            :meth:`loss`.

        Raises:
            ValueError: If the mode is another one.
        """
        if mode == 'tensor':
            return self.heads[-1](self.backbone(inputs)[-1])
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        raise ValueError(f"mode is 'tensor', 'predict' or 'loss', got {mode!r}")

    def predict(self, inputs: Tensor, data_samples: Sequence[Any] | None = None) -> list[Any]:
        """Set every sample's ``pred_score``, (K,), and ``pred_label``, (1,), by the last column.

        Args:
            inputs: Normalised images, (B, c, H, W).
            data_samples: Samples to write to. None: new ones.
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
        """The weighted parts of the loss.

        Args:
            inputs: Normalised images, (B, c, H, W), in training as the network sees them: mixed and erased.
            data_samples: With ``gt_score``, (K,), as from mixup and cutmix, or with ``gt_label``, (1,).

        Returns:
            'loss_cls', of the last column, and with supervision 'loss_rec_i' and 'loss_cls_i', i < 3.
        """
        if 'gt_score' in data_samples[0]:
            target = torch.stack([sample.gt_score for sample in data_samples])
        else:
            target = torch.cat([sample.gt_label for sample in data_samples])

        losses = {}
        *features, last = self.supervised_features(inputs)
        for i, (feature, head, decoder) in enumerate(zip(features, self.heads, self.decoder_blocks)):
            weight = (1 - i / len(self.decoder_blocks)) * self.reconstruction_weight
            losses[f'loss_rec_{i}'] = weight * reconstruction_loss(
                decoder, feature, inputs, self.data_preprocessor, recompute=self.backbone.save_memory
            )
            weight = (i + 1) / len(self.heads) * self.classification_weight
            losses[f'loss_cls_{i}'] = weight * self._classification_loss(head, feature, target)
        losses['loss_cls'] = self._classification_loss(self.heads[-1], last, target)
        return losses

    def _classification_loss(self, head: nn.Module, feature: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(head(feature), target, label_smoothing=self.label_smoothing)
