"""An exported file that predicts like the model it was made of.

Shapes: B batch, C, H and W channels, height and width of the images, N boxes.
"""

import json
from pathlib import Path
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from revcol_mm.export.exported_file import open_onnx, open_torch_export

from .init_model import pick_device


class ExportedModel(BaseModel):
    """A file of ``revcol export`` with the interface of a model. The model itself is not built.

    If the file has a fixed size, smaller images are padded at the right and bottom with the mean colour.
    Labels of a segmentor are scaled to the size of the image by nearest neighbours, whereas testing scales
    scores.

    Args:
        cfg: Config of the exported model.
        path: ONNX or torch.export file. Reading a torch.export file may run code that it contains.
        device: See :func:`pick_device`; onnxruntime can only use a CPU or an NVIDIA GPU.

    Attributes:
        output_names: Names of the file's outputs.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a file of ``revcol export``, returns features instead of predictions, or
            cannot run on the device.
    """

    def __init__(self, cfg: Config, path: str | Path, device: str | None = None) -> None:
        super().__init__()
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'no file {path}')
        try:
            if path.suffix == '.onnx':
                self.run, self.shape, metadata = open_onnx(path, device)
            else:
                self.run, self.shape, metadata = open_torch_export(path, pick_device(device))
            self.output_names = tuple(json.loads(metadata['outputs']))
        except Exception as error:  # every runtime has its own exceptions
            raise ValueError(f'cannot run {path}, which must be a file of revcol export: {error}') from error
        if 'feature_0' in self.output_names:
            raise ValueError(
                f'{path} has only a backbone and cannot predict: export it without --backbone-only'
            )
        self.cfg, self.path = cfg, path
        self.mean = json.loads(metadata['mean']) or [0.0]
        self.swaps_channels = metadata['channel_order'] == 'RGB'
        classes = json.loads(metadata['classes'])
        self.dataset_meta = dict(classes=classes) if classes else {}

    @property
    def with_mask(self) -> bool:
        return not {'masks', 'mask_logits'}.isdisjoint(self.output_names)

    def forward(
        self, inputs: Sequence[Tensor], data_samples: Sequence[Any], mode: str = 'predict'
    ) -> list[Any]:
        """Predict on images.

        Args:
            inputs: Images as the test pipeline returns them, (C, H, W), from 0 to 255, all of one size.
            data_samples: Data sample of each image, into which predictions are written.
            mode: Must be 'predict'.

        Returns:
            The data samples.

        Raises:
            ValueError: For another mode, or images that the file does not accept.
        """
        if mode != 'predict':
            raise ValueError(f"an exported file has only the mode 'predict', got {mode!r}")
        images = torch.stack(list(inputs)).float()
        if self.swaps_channels:
            images = images.flip(1)
        images = self._padded(images)
        parts = images.split(1) if isinstance(self.shape[0], int) else [images]
        outputs = [torch.cat(tensors).cpu() for tensors in zip(*map(self.run, parts))]
        write = dict(mmdet=self._write_detections, mmseg=self._write_labels, mmpretrain=self._write_scores)
        for sample, *own in zip(data_samples, *outputs):
            sample.set_metainfo(dict(batch_input_shape=tuple(images.shape[2:])))
            write[self.cfg.default_scope](sample, dict(zip(self.output_names, own)))
        return list(data_samples)

    def test_step(self, data: dict[str, Any]) -> list[Any]:
        """Predict on a batch of a data loader."""
        return self(**data)

    def _padded(self, images: Tensor) -> Tensor:
        missing = [
            side - own if isinstance(side, int) else 0 for side, own in zip(self.shape[2:], images.shape[2:])
        ]
        if min(missing) < 0 or (isinstance(self.shape[1], int) and self.shape[1] != images.shape[1]):
            raise ValueError(f'{self.path} takes images of shape {self.shape}, got {tuple(images.shape)}')
        mean = images.new_tensor(self.mean)[:, None, None]
        return F.pad(images - mean, (0, missing[1], 0, missing[0])) + mean if any(missing) else images

    def _write_detections(self, sample: Any, outputs: dict[str, Tensor]) -> None:
        if 'segments' in outputs:
            segments = self._scaled_labels(sample, outputs['segments'])
            sample.pred_panoptic_seg = PixelData(sem_seg=segments)
        if 'boxes' not in outputs:
            return
        found = outputs['scores'] > 0
        instances = InstanceData(**{name: outputs[name][found] for name in ('scores', 'labels')})
        instances.bboxes = outputs['boxes'][found] / outputs['boxes'].new_tensor([*sample.scale_factor] * 2)
        if 'mask_logits' in outputs:
            instances.masks = self._scaled_masks(sample, outputs['mask_logits'][found]) > 0
        elif 'masks' in outputs:
            from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

            threshold = self.cfg.model.test_cfg.rcnn.mask_thr_binary
            masks, _ = _do_paste_mask(
                outputs['masks'][found][:, None], instances.bboxes, *sample.ori_shape[:2], skip_empty=False
            )
            instances.masks = masks >= threshold
        sample.pred_instances = instances

    def _write_labels(self, sample: Any, outputs: dict[str, Tensor]) -> None:
        sample.pred_sem_seg = PixelData(data=self._scaled_labels(sample, outputs['labels']))

    def _write_scores(self, sample: Any, outputs: dict[str, Tensor]) -> None:
        sample.set_pred_score(outputs['scores']).set_pred_label(outputs['scores'].argmax())

    @staticmethod
    def _scaled_labels(sample: Any, labels: Tensor) -> Tensor:
        """Remove the padding of labels, (H, W), and scale them to the original image, (1, H', W')."""
        height, width = sample.img_shape[:2]
        labels = labels[None, None, :height, :width].float()
        return F.interpolate(labels, sample.ori_shape[:2], mode='nearest-exact').long()[0]

    @staticmethod
    def _scaled_masks(sample: Any, logits: Tensor) -> Tensor:
        """Scale mask logits, (N, h, w), to the original image, in two steps as testing does."""
        height, width = sample.img_shape[:2]
        logits = F.interpolate(logits[:, None], sample.batch_input_shape, mode='bilinear')  # N may be 0
        return F.interpolate(logits[..., :height, :width], sample.ori_shape[:2], mode='bilinear')[:, 0]
