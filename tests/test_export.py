"""An evaluating model can be exported, however it trains, and computes the same when it is."""

import copy
import json

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from skimage import data
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from revcol_mm.apis import init_inferencer, init_model
from revcol_mm.apis.exportable import MatrixPool2d, exportable
from revcol_mm.apis.exported_model import ExportedModel
from revcol_mm.apis.image_graph import image_graph

from .subprocesses import REPO

TOOL = 'tools/export.py'
WIDTHS = dict(channels=(8, 16, 24, 32), layers=(1, 1, 2, 1))


BACKBONES = {
    'RevCol': dict(type='RevCol', arch=dict(WIDTHS, num_columns=3)),
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
def evaluating(request):
    """A model, an image of a size that no power of two divides, and the features."""
    model = MODELS.build(dict(copy.deepcopy(request.param), save_memory=True)).eval()
    before = copy.deepcopy(model.state_dict())
    image = torch.randn(1, 3, 70, 98)
    with torch.no_grad():
        yield model, image, model(image)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_torch_export_of_an_evaluating_backbone(evaluating):
    model, image, features = evaluating
    exported = torch.export.export(model, (image,)).module()
    for actual, expected in zip(exported(image), features, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dynamo', [False, True], ids=['torchscript', 'dynamo'])
def test_onnx_runtime_gives_the_features_of_an_evaluating_backbone(evaluating, dynamo, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    model, image, features = evaluating
    path = str(tmp_path / 'revcol.onnx')
    torch.onnx.export(model, (image,), path, dynamo=dynamo, input_names=['image'])
    outputs = onnxruntime.InferenceSession(path).run(None, {'image': image.numpy()})
    for actual, expected in zip(outputs, features, strict=True):
        torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-4)


ARCH = dict(channels=[4, 6, 8, 10], layers=(1, 1, 1, 1), num_columns=2)
UPERNET = 'configs/upernet_revcol_nano_supervised_sample.py'
CLASSIFIER = 'configs/revcol_nano_sample.py'
MMPRETRAIN = 'tests/configs/classifier_revcol_nano_sample.py'
DINO = 'configs/dino_revcol_nano_sample.py'
SMALL = {  # what makes their models small
    UPERNET: {
        'decode_head.in_channels': ARCH['channels'],
        'auxiliary_head.in_channels': 8,
        'supervision.columns': [0],
        'supervision.head.in_channels': 8,
        **{f'{head}.channels': 8 for head in ('decode_head', 'auxiliary_head', 'supervision.head')},
        'test_cfg': dict(mode='whole'),
    },
    CLASSIFIER: {'supervision': None},
    MMPRETRAIN: {'head.in_channels': 10},
    DINO: {'neck.in_channels': ARCH['channels'][1:]},
}


@pytest.fixture
def small(tmp_path):
    """Writes a config like another one, but small, and random weights; returns these files and the model."""

    def write(path):
        cfg = Config.fromfile(REPO / path)
        cfg.model.backbone.arch = ARCH
        cfg.merge_from_dict({f'model.{key}': value for key, value in SMALL[path].items()})
        cfg.dump(tmp_path / 'small.py')
        model = init_model(cfg, device='cpu')
        torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'small.pth')
        return tmp_path / 'small.py', tmp_path / 'small.pth', model

    return write


def load(path):
    """A function that runs an exported file, and its metadata."""
    if path.suffix == '.onnx':
        onnx = pytest.importorskip('onnx')
        session = pytest.importorskip('onnxruntime').InferenceSession(path)
        metadata = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
        return lambda image: [*map(torch.from_numpy, session.run(None, {'image': image.numpy()}))], metadata
    extra = {'metadata.json': ''}
    if path.suffix == '.pt':
        run = torch.jit.load(path, _extra_files=extra)
    else:
        run = torch.export.load(path, extra_files=extra).module()
    return run, json.loads(extra['metadata.json'])


@pytest.mark.parametrize(
    'config, suffix, options',
    [
        (UPERNET, '.onnx', ['--dynamic']),
        (UPERNET, '.pt', ['--dynamic']),
        (UPERNET, '.pt2', ['--dynamic']),
        (CLASSIFIER, '.onnx', []),
        (MMPRETRAIN, '.pt', ['--dynamic']),
        (DINO, '.pt', ['--dynamic', '--backbone-only']),
    ],
)
def test_an_exported_file_does_what_the_model_does_and_says_how(
    config, suffix, options, small, tmp_path, call_tool
):
    file = tmp_path / f'exported{suffix}'
    file_format = {'.onnx': 'onnx', '.pt': 'torchscript', '.pt2': 'torch-export'}[suffix]
    path, checkpoint, model = small(config)
    arguments = (path, checkpoint, '--format', file_format, '--shape', 64, 96, '--out', file, *options)
    printed, error = call_tool(TOOL, *arguments)
    assert not error
    assert printed.count('largest difference') == (3 if '--dynamic' in options else 1)

    run, metadata = load(file)
    graph = image_graph(model, '--backbone-only' in options)
    size = (3, 75, 131) if '--dynamic' in options else (1, 64, 96)
    image = 255 * torch.rand(size[0], 3, *size[1:])
    with torch.no_grad():
        for actual, expected in zip(tree_leaves(run(image)), tree_leaves(graph(image)), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert json.loads(metadata['outputs']) == graph.outputs and all(graph.outputs.values())
    assert metadata['channel_order'] == 'RGB'
    assert json.loads(metadata['mean']) == pytest.approx([123.675, 116.28, 103.53])
    classes = dict.fromkeys([CLASSIFIER, MMPRETRAIN, DINO]) | {UPERNET: ['background', *'0123456789']}
    assert json.loads(metadata['classes']) == classes[config]
    if suffix in ('.onnx', '.pt2') and classes[config]:
        predict(Config.fromfile(path), file, checkpoint)


@pytest.mark.parametrize('config', [UPERNET, CLASSIFIER, MMPRETRAIN])
def test_the_graph_answers_as_testing_does_on_the_image_as_it_was_read(config, small):
    *_, model = small(config)
    bgr = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 96), np.uint8))
    outputs = image_graph(model)(bgr.flip(0)[None].float())
    data = dict(inputs=[bgr])
    if config == UPERNET:
        sample = SegDataSample(metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96)))
        (prediction,) = model.test_step(data | dict(data_samples=[sample]))
        labels, scores = outputs
        assert torch.equal(labels, prediction.pred_sem_seg.data) and len(labels.unique()) > 1
        torch.testing.assert_close(scores, prediction.seg_logits.data.softmax(0).amax(0)[None])
    else:
        (prediction,) = model.test_step(data | dict(data_samples=[DataSample()]))
        torch.testing.assert_close(outputs[0], prediction.pred_score)


def test_a_head_that_is_not_exported_is_named_and_its_backbone_can_be_exported():
    model = init_model(REPO / 'configs/retinanet_revcol_nano_bccd.py', device='cpu')
    model.__class__ = type('OtherNet', (type(model),), {})
    with pytest.raises(ValueError, match='OtherNet with RetinaHead is not exported: .*--backbone-only'):
        image_graph(model)
    graph = image_graph(model, backbone_only=True)
    assert len(graph(torch.zeros(1, 3, 64, 64))) == len(graph.output_names) == len(model.backbone.out_indices)


def detect(model, images):
    """What testing says of a batch of images that are not padded."""
    size = tuple(images.shape[2:])
    meta = dict(img_shape=size, pad_shape=size, batch_input_shape=size, ori_shape=size, scale_factor=(1, 1))
    samples = [DetDataSample(metainfo=meta) for _ in images]
    return [sample.pred_instances for sample in model.predict(images, samples, rescale=False)]


@pytest.fixture
def detector(request):
    """A small model with random weights everywhere."""
    cfg = Config.fromfile(REPO / request.param)
    if request.param == PANOPTIC:  # segments without training
        cfg.model.test_cfg.update(object_mask_thr=0.12, iou_thr=0.1)
    model = init_model(cfg, device='cpu')
    torch.manual_seed(0)
    for param in model.parameters():
        param.data.add_(0.02 * torch.randn_like(param))
    return model


def predict(cfg, file, checkpoint):
    """The predictions of an exported file on an image of the sample data; those of the model are asserted."""
    image = data.astronaut()[:256, :256]
    expected, actual = (init_inferencer(cfg, path, 'cpu') for path in (checkpoint, file))
    for inferencer in (expected, actual):
        if hasattr(inferencer, 'score_threshold'):
            inferencer.score_threshold = 0.0
    (wanted,), (got,) = (inferencer.predict([image]) for inferencer in (expected, actual))
    assert type(wanted) is type(got)
    if hasattr(wanted, 'pred_sem_seg'):
        same = (actual.labels(got) == expected.labels(wanted)).mean()
        assert same > 0.97
    elif hasattr(wanted, 'pred_panoptic_seg'):
        assert (actual.segments(got) == expected.segments(wanted)).mean() > 0.97
    elif hasattr(wanted, 'pred_instances'):
        # Testing measures Mask2Former's boxes and scores in the image's own size, the file in the network's.
        pixels, share = (2, 0.98) if cfg.model.type == 'Mask2Former' else (0.1, 0.999)
        order = wanted.pred_instances.scores.argsort(descending=True, stable=True)
        wanted.pred_instances = wanted.pred_instances[order]  # Mask2Former's have none
        torch.testing.assert_close(got.pred_instances.scores, wanted.pred_instances.scores, rtol=0, atol=1e-3)
        torch.testing.assert_close(
            got.pred_instances.bboxes, wanted.pred_instances.bboxes, rtol=0, atol=pixels
        )
        if hasattr(wanted.pred_instances, 'masks'):
            assert (got.pred_instances.masks == wanted.pred_instances.masks).float().mean() > share
    else:
        torch.testing.assert_close(got.pred_score, wanted.pred_score)
    (picture,), (other,) = (
        inferencer.draw([image], [sample]) for inferencer, sample in ((expected, wanted), (actual, got))
    )
    assert picture.shape == other.shape and (other != image).any()  # colours are random


CASCADE = 'configs/cascade_mask_rcnn_revcol_nano_sample.py'
MASK2FORMER = 'configs/mask2former_revcol_nano_sample.py'
INSTANCE = 'configs/mask2former_revcol_nano_instance_sample.py'
PANOPTIC = 'configs/mask2former_revcol_nano_panoptic_sample.py'
RETINANET = 'tests/configs/retinanet_revcol_nano_sample.py'


@pytest.mark.parametrize('detector', [DINO, RETINANET, CASCADE], indirect=True)
def test_a_detector_s_graph_answers_as_testing_does(detector):
    graph = image_graph(detector)
    images = 255 * torch.rand(2, 3, 160, 192)
    with torch.no_grad():
        outputs = dict(zip(graph.output_names, graph(images)))
        expected = detect(detector, graph.normalised(images))
    for index, instances in enumerate(expected):
        number = len(instances)
        assert number > 10 and (outputs['scores'][index, number:] == 0).all()
        torch.testing.assert_close(outputs['scores'][index, :number], instances.scores)
        torch.testing.assert_close(outputs['boxes'][index, :number], instances.bboxes, rtol=0, atol=1e-3)
        assert torch.equal(outputs['labels'][index, :number], instances.labels)
    if 'masks' in outputs:
        assert outputs['masks'].shape == (2, outputs['boxes'].shape[1], 28, 28)


@pytest.mark.parametrize('detector', [INSTANCE, PANOPTIC], indirect=True)
def test_mask2former_s_graph_answers_as_testing_does(detector):
    graph = image_graph(detector)
    images = 255 * torch.rand(2, 3, 160, 192)
    size = tuple(images.shape[2:])
    meta = dict(img_shape=size, batch_input_shape=size, ori_shape=size)
    with torch.no_grad():
        outputs = dict(zip(graph.output_names, graph(images)))
        samples = [DetDataSample(metainfo=meta) for _ in images]
        detector.predict(graph.normalised(images), samples, rescale=False)
    for index, sample in enumerate(samples):
        found = sample.pred_instances
        found = found[found.scores.argsort(descending=True, stable=True)]
        number = len(found)
        assert number > 5 and (outputs['scores'][index, number:] == 0).all()
        torch.testing.assert_close(outputs['scores'][index, :number], found.scores)
        assert torch.equal(outputs['labels'][index, :number], found.labels)
        assert torch.equal(outputs['boxes'][index, :number], found.bboxes)
        logits = F.interpolate(outputs['mask_logits'][index : index + 1, :number], size, mode='bilinear')[0]
        assert torch.equal(logits > 0, found.masks)
        if detector.cfg.model.test_cfg.panoptic_on:
            segments = sample.pred_panoptic_seg.sem_seg[0]
            assert len(segments.unique()) > 2
            assert torch.equal(outputs['segments'][index], segments)


@pytest.mark.slow
@pytest.mark.parametrize(
    'detector', [DINO, RETINANET, CASCADE, MASK2FORMER, INSTANCE, PANOPTIC], indirect=True
)
def test_heads_with_queries_or_boxes_are_exported_with_free_sizes(detector, tmp_path, call_tool):
    detector.cfg.dump(tmp_path / 'config.py')
    torch.save(dict(state_dict=detector.state_dict(), meta={}), tmp_path / 'weights.pth')
    arguments = tmp_path / 'config.py', tmp_path / 'weights.pth', '--format', 'onnx', '--shape', 128, 160
    printed, error = call_tool(TOOL, *arguments, '--dynamic', '--out', tmp_path / 'a.onnx')
    assert not error and printed.count('largest difference') == 3
    run, metadata = load(tmp_path / 'a.onnx')
    graph = image_graph(detector)
    assert json.loads(metadata['outputs']) == graph.outputs and all(graph.outputs.values())
    images = 255 * torch.rand(3, 3, 175, 223)
    with torch.no_grad():
        assert graph.difference(run(images), images) < 1e-3
    # in the place of a checkpoint
    predict(detector.cfg, tmp_path / 'a.onnx', tmp_path / 'weights.pth')


def test_half_is_for_onnx_of_what_has_no_boxes(small, tmp_path, call_tool):
    path, checkpoint, model = small(DINO)
    for file_format, message in (
        ('onnx', '--half is not for detectors'),
        ('torch-export', '--half is for format onnx, got torch-export'),
    ):
        arguments = path, checkpoint, '--format', file_format, '--shape', 128, 128, '--half'
        assert message in call_tool(TOOL, *arguments)[1]
    file = tmp_path / 'half.onnx'
    arguments = path, checkpoint, '--format', 'onnx', '--shape', 64, 64, '--half', '--backbone-only'
    assert not call_tool(TOOL, *arguments, '--out', file)[1]
    run, _ = load(file)
    image = 255 * torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert image_graph(model, True).difference(run(image), image) < 1e-2
    onnx = pytest.importorskip('onnx')
    kinds = {tensor.data_type for tensor in onnx.load(file).graph.initializer if len(tensor.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize(
    'config, masks', [(DINO, {}), (CASCADE, {'masks': (28, 28)}), (INSTANCE, {'mask_logits': (16, 24)})]
)
def test_an_image_without_objects_has_none(config, masks):
    model = ExportedModel.__new__(ExportedModel)
    model.cfg, model.output_names = Config.fromfile(REPO / config), ('boxes', 'scores', 'labels', *masks)
    meta = dict(img_shape=(60, 90), ori_shape=(120, 180), scale_factor=(0.5, 0.5), batch_input_shape=(64, 96))
    sample = DetDataSample(metainfo=meta)
    outputs = dict(boxes=torch.zeros(5, 4), scores=torch.zeros(5), labels=torch.zeros(5, dtype=torch.long))
    model._write_detections(
        sample, {**outputs, **{name: torch.ones(5, *size) for name, size in masks.items()}}
    )
    assert len(sample.pred_instances) == 0
    assert not masks or sample.pred_instances.masks.shape == (0, 120, 180)


@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
def test_what_is_no_exported_model_is_an_error(suffix, tmp_path):
    path = tmp_path / f'a{suffix}'
    with pytest.raises(FileNotFoundError, match=f'no file .*a{suffix}'):
        init_inferencer(REPO / DINO, path, 'cpu')
    path.write_bytes(b'something else')
    with pytest.raises(ValueError, match=f'cannot run .*a{suffix}, which has to be of tools/export.py: '):
        init_inferencer(REPO / DINO, path, 'cpu')
    if suffix == '.onnx' and not torch.cuda.is_available():
        with pytest.raises(ValueError, match="onnxruntime runs on no GPU here, so not on 'cuda:0'"):
            init_inferencer(REPO / DINO, path, 'cuda:0')


def test_a_file_of_one_size_pads_smaller_images_and_refuses_larger_ones(small, tmp_path, call_tool):
    path, checkpoint, _ = small(UPERNET)
    arguments = path, checkpoint, '--format', 'torch-export', '--shape', 192, 256
    assert not call_tool(TOOL, *arguments, '--out', tmp_path / 'a.pt2')[1]
    model = ExportedModel(Config.fromfile(path), tmp_path / 'a.pt2', 'cpu')
    graph = image_graph(init_model(path, checkpoint, 'cpu'))
    mean = torch.tensor(model.mean)[:, None, None]
    images = torch.randint(0, 256, (2, 3, 160, 224)).to(torch.uint8)  # BGR
    size = dict(img_shape=(160, 224), ori_shape=(160, 224))
    samples = model.test_step(
        dict(inputs=images, data_samples=[SegDataSample(metainfo=size) for _ in images])
    )
    padded = F.pad(images.flip(1).float() - mean, (0, 32, 0, 32)) + mean
    with torch.no_grad():
        labels, _ = graph(padded)
    for sample, expected in zip(samples, labels):
        assert (sample.pred_sem_seg.data[0] == expected[:160, :224]).float().mean() > 0.999
    with pytest.raises(ValueError, match=r'a.pt2 takes images \[1, 3, 192, 256\], got \(2, 3, 160, 288\)'):
        model.test_step(dict(inputs=torch.zeros(2, 3, 160, 288), data_samples=samples))


def test_a_lost_box_is_a_difference():
    graph = image_graph(init_model(REPO / CASCADE, device='cpu'))
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


def test_a_file_that_differs_from_the_model_is_an_error_and_deleted(small, tmp_path, call_tool, monkeypatch):
    path, checkpoint, _ = small(UPERNET)
    file = tmp_path / 'exported.pt'
    trace = torch.jit.trace

    def wrong(graph, *args, **kwargs):
        graph.pixel_mean = graph.pixel_mean + 1
        traced = trace(graph, *args, **kwargs)
        graph.pixel_mean = graph.pixel_mean - 1
        return traced

    monkeypatch.setattr(torch.jit, 'trace', wrong)
    arguments = (path, checkpoint, '--format', 'torchscript', '--shape', 64, 64, '--out', file)
    _, error = call_tool(TOOL, *arguments)
    assert error.startswith('error: on 1 x 64 x 64 images the file differs from the model by')
    assert not file.exists()
    _, error = call_tool(TOOL, *arguments, '--tolerance', 1)
    assert not error and file.exists()


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--shape', 64, 32), '--shape takes height and width from 64 on, got 64 and 32'),
        (('--out', 'a.onnx'), '--out: the name of a file in format torchscript ends in .pt, got a.onnx'),
        (('--device', 'cuda:99'), "device 'cuda:99' is none of cpu"),
    ],
)
def test_what_cannot_be_exported_is_an_error_in_one_line(arguments, message, small, call_tool, tmp_path):
    path, checkpoint, _ = small(CLASSIFIER)
    if '--out' not in arguments:
        arguments = (*arguments, '--out', tmp_path / 'a.pt')
    _, error = call_tool(TOOL, path, checkpoint, '--format', 'torchscript', *arguments)
    assert error.startswith('error: ') and message in error


@pytest.mark.parametrize('size', [1, 3, 6, (2, 5), (6, 1)])
def test_pooling_by_matrices_is_adaptive_pooling(size):
    for height, width in ((1, 2), (4, 7), (6, 6), (33, 17)):
        x = torch.randn(2, 3, height, width)
        model = nn.Sequential(nn.AdaptiveAvgPool2d(size))
        actual = exportable(model)
        assert isinstance(actual[0], MatrixPool2d) and isinstance(model[0], nn.AdaptiveAvgPool2d)
        torch.testing.assert_close(actual(x), model(x))
