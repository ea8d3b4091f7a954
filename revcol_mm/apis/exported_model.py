"""An exported file in the place of a model: it predicts what testing returns, without building the model.

Letters: B batch, C and H and W channels and size of the images, N boxes.
"""

import json
from pathlib import Path
from typing import Any, Callable, Sequence

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from revcol_mm.check_env import require_parts

from .init_model import pick_device

Run = Callable[[Tensor], Sequence[Tensor]]
SUFFIXES = ('.onnx', '.pt2')


def is_exported(path: str | Path | None) -> bool:
    """Whether a checkpoint's name is that of an exported file."""
    return Path(str(path)).suffix in SUFFIXES


def open_onnx(path: Path, device: str | None) -> tuple[Run, list[Any], dict[str, str]]:
    """Open a file of ONNX.

    Args:
        path: Of the file.
        device: 'cpu', 'cuda' or 'cuda:1'. None: a GPU if onnxruntime can use one.

    Returns:
        What runs it, its input's shape, in which free sizes are names, and its metadata.

    Raises:
        ValueError: If onnxruntime cannot use the device.
    """
    require_parts('running ONNX', ('onnxruntime',))
    import onnxruntime

    has_cuda = 'CUDAExecutionProvider' in onnxruntime.get_available_providers()
    wanted = torch.device(device or ('cuda' if has_cuda else 'cpu'))
    if wanted.type == 'cuda' and not has_cuda:
        raise ValueError(f'onnxruntime runs on no GPU here, so not on {device!r}: install onnxruntime-gpu')
    on_gpu = [('CUDAExecutionProvider', dict(device_id=wanted.index or 0))] if wanted.type == 'cuda' else []
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of 16-bit constants that it does not fold
    session = onnxruntime.InferenceSession(path, options, providers=[*on_gpu, 'CPUExecutionProvider'])

    def run(image: Tensor) -> list[Tensor]:
        return [torch.from_numpy(each) for each in session.run(None, {'image': image.cpu().numpy()})]

    return run, session.get_inputs()[0].shape, session.get_modelmeta().custom_metadata_map


def open_torch_export(path: Path, device: str | None) -> tuple[Run, list[Any], dict[str, str]]:
    """Open a file of torch.export, which may run code as torch reads it; see :func:`open_onnx`."""
    device, extra = pick_device(device), {'metadata.json': ''}
    program = torch.export.load(path, extra_files=extra)
    (image,) = (node for node in program.graph.nodes if node.op == 'placeholder' and node.name == 'image')
    module, shape = program.module().to(device), list(image.meta['val'].shape)
    return lambda image: module(image.to(device)), shape, json.loads(extra['metadata.json'])


class ExportedModel(BaseModel):
    """A file of tools/export.py as a model that can be tested.

    Images are padded to the file's size, if that is fixed, at their right and bottom with the mean colour. A
    segmentor's labels are scaled to the image's size by nearest neighbours, where testing scales scores.

    Args:
        cfg: The config of the model that was exported.
        path: The file, ONNX or torch.export. One of torch.export may run code as torch reads it.
        device: See :func:`open_onnx`.

    Attributes:
        output_names: What the file returns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no model of tools/export.py, or one that returns no predictions, or cannot run
            on the device.
    """

    def __init__(self, cfg: Config, path: str | Path, device: str | None = None) -> None:
        super().__init__()
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'no file {path}')
        opened = open_onnx if path.suffix == '.onnx' else open_torch_export
        try:
            self.run, self.shape, metadata = opened(path, device)
            self.output_names = tuple(json.loads(metadata['outputs']))
        except Exception as error:  # each runtime has its own
            raise ValueError(f'cannot run {path}, which has to be of tools/export.py: {error}') from error
        if 'feature_0' in self.output_names:
            raise ValueError(f'{path} has a backbone alone, which predicts nothing')
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
        """Predict.

        Args:
            inputs: Images as the test pipeline gives them, (C, H, W), from 0 to 255, of one size.
            data_samples: One of each image; predictions are written into them.
            mode: 'predict', or a ValueError is raised.

        Returns:
            The data samples.
        """
        if mode != 'predict':
            raise ValueError(f'an exported file predicts, it has no mode {mode!r}')
        images = torch.stack(list(inputs)).float()
        if self.swaps_channels:
            images = images.flip(1)
        images = self._padded(images)
        parts = images.split(1) if isinstance(self.shape[0], int) else [images]
        outputs = [torch.cat(tensors).cpu() for tensors in zip(*map(self.run, parts))]
        named = dict(zip(self.output_names, outputs))
        write = dict(mmdet=self._write_detections, mmseg=self._write_labels, mmpretrain=self._write_scores)
        for index, sample in enumerate(data_samples):
            sample.set_metainfo(dict(batch_input_shape=tuple(images.shape[2:])))
            write[self.cfg.default_scope](sample, {name: output[index] for name, output in named.items()})
        return list(data_samples)

    def test_step(self, data: dict[str, Any]) -> list[Any]:
        """Predict on what a data loader gives."""
        return self(**data)

    val_step = test_step

    def _padded(self, images: Tensor) -> Tensor:
        """The images in the file's size, if that is fixed."""
        missing = [
            side - own if isinstance(side, int) else 0 for side, own in zip(self.shape[2:], images.shape[2:])
        ]
        if min(missing) < 0 or (isinstance(self.shape[1], int) and self.shape[1] != images.shape[1]):
            raise ValueError(f'{self.path} takes images {self.shape}, got {tuple(images.shape)}')
        if not any(missing):
            return images
        mean = images.new_tensor(self.mean)[:, None, None]
        return F.pad(images - mean, (0, missing[1], 0, missing[0])) + mean

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

    @staticmethod
    def _scaled_labels(sample: Any, labels: Tensor) -> Tensor:
        """Labels of pixels, (H, W), without padding in the size of the image as it was read, (1, H', W')."""
        height, width = sample.img_shape[:2]
        labels = labels[None, None, :height, :width].float()
        return F.interpolate(labels, sample.ori_shape[:2], mode='nearest-exact').long()[0]

    @staticmethod
    def _scaled_masks(sample: Any, logits: Tensor) -> Tensor:
        """Mask logits, (N, h, w), in the size of the image as it was read, scaled as testing does."""
        height, width = sample.img_shape[:2]
        logits = F.interpolate(logits[:, None], sample.batch_input_shape, mode='bilinear')  # N may be 0
        return F.interpolate(logits[..., :height, :width], sample.ori_shape[:2], mode='bilinear')[:, 0]

    def _write_scores(self, sample: Any, outputs: dict[str, Tensor]) -> None:
        sample.set_pred_score(outputs['scores']).set_pred_label(outputs['scores'].argmax())
