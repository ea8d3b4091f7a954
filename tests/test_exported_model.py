"""Exported files in the place of checkpoints."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmseg.structures import SegDataSample
from skimage import data
from torch.nn import functional as F

from revcol_mm.apis import init_inferencer, init_model
from revcol_mm.apis.exported_model import ExportedModel
from revcol_mm.export.build_image_graph import build_image_graph
from revcol_mm.export.exported_file import open_onnx, open_torch_export, write_onnx, write_torch_export
from revcol_mm.export.image_graph import ImageGraph

from . import exported_models as models
from .subprocesses import REPO


def assert_predicts_like_checkpoint(cfg, file, checkpoint):
    """Compare predictions of an exported file with those of its model, through the inferencers."""
    image = data.astronaut()[:256, :256]
    expected, actual = (init_inferencer(cfg, path, 'cpu') for path in (checkpoint, file))
    for inferencer in (expected, actual):
        if hasattr(inferencer, 'score_threshold'):
            inferencer.score_threshold = 0.0
    (wanted,), (got,) = (inferencer.predict([image]) for inferencer in (expected, actual))
    assert type(wanted) is type(got)
    if hasattr(wanted, 'pred_sem_seg'):
        assert (actual.labels(got) == expected.labels(wanted)).mean() > 0.97
    elif hasattr(wanted, 'pred_panoptic_seg'):
        assert (actual.segments(got) == expected.segments(wanted)).mean() > 0.97
    elif hasattr(wanted, 'pred_instances'):
        # For Mask2Former, testing measures boxes and scores in the image's size, the file in the network's.
        pixels, share = (2, 0.98) if cfg.model.type == 'Mask2Former' else (0.1, 0.999)
        order = wanted.pred_instances.scores.argsort(descending=True, stable=True)
        wanted.pred_instances = wanted.pred_instances[order]  # testing does not sort Mask2Former's
        scores, boxes = ([each.pred_instances[key] for each in (got, wanted)] for key in ('scores', 'bboxes'))
        torch.testing.assert_close(*scores, rtol=0, atol=1e-3)
        torch.testing.assert_close(*boxes, rtol=0, atol=pixels)
        if 'masks' in wanted.pred_instances:
            assert (got.pred_instances.masks == wanted.pred_instances.masks).float().mean() > share
    else:
        torch.testing.assert_close(got.pred_score, wanted.pred_score)
    (picture,), (other,) = (
        inferencer.draw([image], [sample]) for inferencer, sample in ((expected, wanted), (actual, got))
    )
    assert picture.shape == other.shape and (other != image).any()  # colours are random


@pytest.mark.parametrize(
    'config, masks',
    [(models.DINO, {}), (models.CASCADE, {'masks': (28, 28)}), (models.INSTANCE, {'mask_logits': (16, 24)})],
)
def test_image_without_objects(config, masks):
    model = ExportedModel.__new__(ExportedModel)
    torch.nn.Module.__init__(model)
    model.cfg, model.output_names = Config.fromfile(REPO / config), ('boxes', 'scores', 'labels', *masks)
    model.shape, model.swaps_channels, model.mean = ['B', 'C', 'H', 'W'], False, [0.0]
    empty = [torch.zeros(1, 5, 4), torch.zeros(1, 5), torch.zeros(1, 5, dtype=torch.long)]
    model.run = lambda image: [*empty, *(torch.ones(1, 5, *size) for size in masks.values())]
    meta = dict(img_shape=(60, 90), ori_shape=(120, 180), scale_factor=(0.5, 0.5))
    (sample,) = model([torch.zeros(3, 64, 96)], [DetDataSample(metainfo=meta)])
    assert len(sample.pred_instances) == 0
    assert not masks or sample.pred_instances.masks.shape == (0, 120, 180)


@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
def test_other_files_are_errors(suffix, tmp_path):
    path = tmp_path / f'a{suffix}'
    with pytest.raises(FileNotFoundError, match=f'no file .*a{suffix}'):
        init_inferencer(REPO / models.DINO, path, 'cpu')
    path.write_bytes(b'something else')
    with pytest.raises(ValueError, match=f'cannot run .*a{suffix}, which must be a file of revcol export: '):
        init_inferencer(REPO / models.DINO, path, 'cpu')


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_onnx_without_gpu_support_is_an_error(tmp_path):
    (tmp_path / 'a.onnx').touch()
    with pytest.raises(
        ValueError,
        match="onnxruntime cannot use 'cuda:0': install onnxruntime-gpu and give cuda, or give cpu",
    ):
        init_inferencer(REPO / models.DINO, tmp_path / 'a.onnx', 'cuda:0')


class Positions(torch.nn.Module):
    """Adds a tensor that the graph makes to an image."""

    def forward(self, image):
        return image + torch.arange(image.shape[-1], device=image.device)


def positions_graph():
    return ImageGraph(None, Positions(), dict(sums='the image and the index of each column'))


def test_onnx_that_falls_back_to_the_cpu_is_an_error(tmp_path, monkeypatch):
    """As it does where onnxruntime-gpu is installed without the CUDA libraries that it needs."""
    import onnxruntime

    write_onnx(positions_graph(), torch.rand(1, 3, 8, 8), False, {}, tmp_path / 'a.onnx')
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: ['CUDAExecutionProvider'])
    with pytest.raises(ValueError, match="onnxruntime cannot use 'cuda'"):
        open_onnx(tmp_path / 'a.onnx', 'cuda')
    with pytest.raises(ValueError, match="onnxruntime cannot use 'mps'"):
        open_onnx(tmp_path / 'a.onnx', 'mps')


def test_torch_export_runs_on_another_device_than_that_of_export(tmp_path):
    image = torch.rand(1, 3, 8, 8)
    write_torch_export(positions_graph(), image, False, {}, tmp_path / 'a.pt2')
    moved = open_torch_export(tmp_path / 'a.pt2', torch.device('meta')).run(image)
    assert moved.device.type == 'meta' and moved.shape == image.shape


def test_file_of_fixed_size_pads_smaller_images_and_refuses_larger_ones(tmp_path, call_tool):
    path, checkpoint, _ = models.write_small_model(models.UPERNET, tmp_path)
    arguments = path, checkpoint, '--format', 'torch-export', '--shape', 192, 256
    assert not call_tool('tools/export.py', *arguments, '--out', tmp_path / 'a.pt2')[1]
    model = ExportedModel(Config.fromfile(path), tmp_path / 'a.pt2', 'cpu')
    graph = build_image_graph(init_model(path, checkpoint, 'cpu'))
    mean = torch.tensor(model.mean)[:, None, None]
    images = torch.randint(0, 256, (2, 3, 160, 224)).to(torch.uint8)  # BGR
    size = dict(img_shape=(160, 224), ori_shape=(160, 224))
    samples = [SegDataSample(metainfo=size) for _ in images]
    samples = model.test_step(dict(inputs=images, data_samples=samples))
    with torch.no_grad():
        labels, _ = graph(F.pad(images.flip(1).float() - mean, (0, 32, 0, 32)) + mean)
    for sample, expected in zip(samples, labels):
        assert (sample.pred_sem_seg.data[0] == expected[:160, :224]).float().mean() > 0.999
    message = r'a.pt2 takes images of shape \[1, 3, 192, 256\], got \(2, 3, 160, 288\)'
    with pytest.raises(ValueError, match=message):
        model.test_step(dict(inputs=torch.zeros(2, 3, 160, 288), data_samples=samples))
