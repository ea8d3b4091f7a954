"""Exported graphs compute what the model computes in testing."""

import copy

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import nn
from torch.nn import functional as F

from revcol_mm.apis import init_model
from revcol_mm.export.build_image_graph import build_image_graph
from revcol_mm.export.exportable import MatrixPool2d, exportable

from . import exported_models as models
from .subprocesses import REPO

BACKBONES = {
    'RevCol': dict(type='RevCol', arch=dict(channels=(8, 16, 24, 32), layers=(1, 1, 2, 1), num_columns=3)),
    'ResNet': dict(
        type='ReversibleColumns', net=dict(type='mmpretrain.ResNet', depth=18, out_indices=(0, 1, 2, 3))
    ),
    'ConvNeXt': dict(
        type='ReversibleColumns',
        net=dict(
            type='mmpretrain.ConvNeXt',
            arch=dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32]),
            out_indices=(0, 1, 2, 3),
            gap_before_final_norm=False,
        ),
    ),
}


@pytest.fixture(params=BACKBONES.values(), ids=BACKBONES)
def backbone(request):
    """A reversibly training backbone in evaluation mode, an image of odd size, and its features."""
    model = MODELS.build(dict(copy.deepcopy(request.param), save_memory=True)).eval()
    before = copy.deepcopy(model.state_dict())
    image = torch.randn(1, 3, 70, 98)
    with torch.no_grad():
        yield model, image, model(image)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_backbone_torch_export(backbone):
    model, image, features = backbone
    exported = torch.export.export(model, (image,)).module()
    torch.testing.assert_close(exported(image), features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dynamo', [False, True], ids=['torchscript', 'dynamo'])
def test_backbone_onnx(backbone, dynamo, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    model, image, features = backbone
    path = str(tmp_path / 'revcol.onnx')
    torch.onnx.export(model, (image,), path, dynamo=dynamo, input_names=['image'])
    outputs = onnxruntime.InferenceSession(path).run(None, {'image': image.numpy()})
    for actual, expected in zip(outputs, features, strict=True):
        torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('config', [models.UPERNET, models.CLASSIFIER, models.MMPRETRAIN])
def test_segmentor_and_classifier_match_testing(config, tmp_path):
    *_, model = models.write_small_model(config, tmp_path)
    bgr = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 96), np.uint8))
    outputs = build_image_graph(model)(bgr.flip(0)[None].float())
    if config == models.UPERNET:
        sample = SegDataSample(metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96)))
        (prediction,) = model.test_step(dict(inputs=[bgr], data_samples=[sample]))
        labels, scores = outputs
        assert torch.equal(labels, prediction.pred_sem_seg.data) and len(labels.unique()) > 1
        torch.testing.assert_close(scores, prediction.seg_logits.data.softmax(0).amax(0)[None])
    else:
        (prediction,) = model.test_step(dict(inputs=[bgr], data_samples=[DataSample()]))
        torch.testing.assert_close(outputs[0], prediction.pred_score)


def outputs_and_predictions(config, rescale_meta):
    """Return the outputs of a detector's graph on two images, and the data samples of testing."""
    model = models.perturbed_detector(config)
    graph = build_image_graph(model)
    images = 255 * torch.rand(2, 3, 160, 192)
    size = tuple(images.shape[2:])
    meta = dict(img_shape=size, batch_input_shape=size, ori_shape=size, **rescale_meta)
    samples = [DetDataSample(metainfo=meta) for _ in images]
    with torch.no_grad():
        outputs = dict(zip(graph.output_names, graph(images)))
        return outputs, model.predict(graph.normalised(images), samples, rescale=False)


@pytest.mark.parametrize('config', [models.DINO, models.RETINANET, models.CASCADE])
def test_detector_matches_testing(config):
    outputs, samples = outputs_and_predictions(config, dict(pad_shape=(160, 192), scale_factor=(1, 1)))
    for index, sample in enumerate(samples):
        instances = sample.pred_instances
        number = len(instances)
        assert number > 10 and (outputs['scores'][index, number:] == 0).all()
        torch.testing.assert_close(outputs['scores'][index, :number], instances.scores)
        torch.testing.assert_close(outputs['boxes'][index, :number], instances.bboxes, rtol=0, atol=1e-3)
        assert torch.equal(outputs['labels'][index, :number], instances.labels)
    assert config != models.CASCADE or outputs['masks'].shape == (2, outputs['boxes'].shape[1], 28, 28)


@pytest.mark.parametrize('config', [models.INSTANCE, models.PANOPTIC])
def test_mask2former_matches_testing(config):
    outputs, samples = outputs_and_predictions(config, {})
    for index, sample in enumerate(samples):
        found = sample.pred_instances
        found = found[found.scores.argsort(descending=True, stable=True)]
        number = len(found)
        assert number > 5 and (outputs['scores'][index, number:] == 0).all()
        torch.testing.assert_close(outputs['scores'][index, :number], found.scores)
        assert torch.equal(outputs['labels'][index, :number], found.labels)
        assert torch.equal(outputs['boxes'][index, :number], found.bboxes)
        logits = outputs['mask_logits'][index : index + 1, :number]
        assert torch.equal(F.interpolate(logits, (160, 192), mode='bilinear')[0] > 0, found.masks)
        if config == models.PANOPTIC:
            segments = sample.pred_panoptic_seg.sem_seg[0]
            assert len(segments.unique()) > 2
            assert torch.equal(outputs['segments'][index], segments)


def test_unsupported_head_is_named_and_its_backbone_can_be_exported():
    model = init_model(REPO / 'configs/retinanet_revcol_nano_bccd.py', device='cpu')
    model.__class__ = type('OtherNet', (type(model),), {})
    with pytest.raises(ValueError, match='cannot export OtherNet with RetinaHead: .*--backbone-only'):
        build_image_graph(model)
    graph = build_image_graph(model, backbone_only=True)
    assert len(graph(torch.zeros(1, 3, 64, 64))) == len(graph.output_names) == len(model.backbone.out_indices)


def test_difference_measures_boxes_labels_scores_and_masks():
    graph = build_image_graph(init_model(REPO / models.CASCADE, device='cpu'))
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 40], [50, 50, 60, 60]]])
    scores, labels = torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[0, 1, 2]])
    outputs = boxes, scores, labels, torch.rand(1, 3, 28, 28)
    graph.forward = lambda image: outputs
    assert graph.difference(outputs, None) == 0
    moved = boxes + torch.tensor([0.0, 0, 0, 10])
    assert graph.difference((moved, *outputs[1:]), None) == pytest.approx(0.5)
    assert graph.difference((boxes, scores, labels.flip(1), outputs[3]), None) == 1
    assert graph.difference((boxes, scores + 0.2, *outputs[2:]), None) == pytest.approx(0.2)
    assert graph.difference((*outputs[:3], 1 - outputs[3]), None) > 0.5


@pytest.mark.parametrize('size', [1, 3, 6, (2, 5), (6, 1)])
def test_matrix_pool_equals_adaptive_pooling(size):
    for height, width in ((1, 2), (4, 7), (6, 6), (33, 17)):
        x = torch.randn(2, 3, height, width)
        model = nn.Sequential(nn.AdaptiveAvgPool2d(size))
        replaced = exportable(model)
        assert isinstance(replaced[0], MatrixPool2d) and isinstance(model[0], nn.AdaptiveAvgPool2d)
        torch.testing.assert_close(replaced(x), model(x))
