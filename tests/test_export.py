"""The command `revcol export`: its files compute what the model computes, and bad options are errors."""

import json

import pytest
import torch
from mmengine.config import Config
from torch.utils._pytree import tree_leaves

from revcol_mm.export.build_image_graph import build_image_graph

from . import exported_models as models
from .test_exported_model import assert_predicts_like_checkpoint

TOOL = 'tools/export.py'
FORMATS = {'.onnx': 'onnx', '.pt': 'torchscript', '.pt2': 'torch-export'}
CLASSES = {
    models.UPERNET: ['background', *'0123456789'],
    models.CLASSIFIER: None,
    models.MMPRETRAIN: None,
    models.DINO: None,
}


def load(path):
    """Return a function that runs an exported file, and its metadata, read without this package."""
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
        (models.UPERNET, '.onnx', ['--dynamic']),
        (models.UPERNET, '.pt', ['--dynamic']),
        pytest.param(models.UPERNET, '.pt2', ['--dynamic'], marks=pytest.mark.slow),
        (models.CLASSIFIER, '.onnx', []),
        (models.MMPRETRAIN, '.pt', ['--dynamic']),
        (models.DINO, '.pt', ['--dynamic', '--backbone-only']),
    ],
)
def test_file_matches_model_and_has_metadata(config, suffix, options, tmp_path, call_tool):
    file = tmp_path / f'exported{suffix}'
    path, checkpoint, model = models.write_small_model(config, tmp_path)
    arguments = (path, checkpoint, '--format', FORMATS[suffix], '--shape', 64, 96, '--out', file, *options)
    printed, error = call_tool(TOOL, *arguments)
    assert not error
    assert printed.count('largest difference') == (3 if '--dynamic' in options else 1)

    run, metadata = load(file)
    graph = build_image_graph(model, '--backbone-only' in options)
    size = (3, 75, 131) if '--dynamic' in options else (1, 64, 96)
    image = 255 * torch.rand(size[0], 3, *size[1:])
    with torch.no_grad():
        for actual, expected in zip(tree_leaves(run(image)), tree_leaves(graph(image)), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert json.loads(metadata['outputs']) == graph.outputs and all(graph.outputs.values())
    assert metadata['channel_order'] == 'RGB'
    assert json.loads(metadata['mean']) == pytest.approx([123.675, 116.28, 103.53])
    assert json.loads(metadata['classes']) == CLASSES[config]
    if suffix in ('.onnx', '.pt2') and CLASSES[config]:
        assert_predicts_like_checkpoint(Config.fromfile(path), file, checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize(
    'config',
    [models.DINO, models.RETINANET, models.CASCADE, models.MASK2FORMER, models.INSTANCE, models.PANOPTIC],
)
def test_detectors_and_mask2former_export_with_dynamic_sizes(config, tmp_path, call_tool):
    model = models.perturbed_detector(config)
    path, checkpoint = models.write_model(model.cfg, model, tmp_path)
    file = tmp_path / 'a.onnx'
    options = '--format', 'onnx', '--shape', 128, 160, '--dynamic', '--out', file
    printed, error = call_tool(TOOL, path, checkpoint, *options)
    assert not error and printed.count('largest difference') == 3
    run, metadata = load(file)
    graph = build_image_graph(model)
    assert json.loads(metadata['outputs']) == graph.outputs and all(graph.outputs.values())
    images = 255 * torch.rand(3, 3, 175, 223)
    with torch.no_grad():
        assert graph.difference(run(images), images) < 1e-3
    assert_predicts_like_checkpoint(model.cfg, file, checkpoint)


def test_half_stores_weights_in_16_bits(tmp_path, call_tool):
    onnx = pytest.importorskip('onnx')
    path, checkpoint, model = models.write_small_model(models.DINO, tmp_path)
    file = tmp_path / 'half.onnx'
    options = '--format', 'onnx', '--shape', 64, 64, '--half', '--backbone-only', '--out', file
    assert not call_tool(TOOL, path, checkpoint, *options)[1]
    run, _ = load(file)
    image = 255 * torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert build_image_graph(model, backbone_only=True).difference(run(image), image) < 1e-2
    kinds = {tensor.data_type for tensor in onnx.load(file).graph.initializer if len(tensor.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}


def test_file_that_differs_from_the_model_is_deleted(tmp_path, call_tool, monkeypatch):
    path, checkpoint, _ = models.write_small_model(models.UPERNET, tmp_path)
    file = tmp_path / 'exported.pt'
    trace = torch.jit.trace

    def trace_with_another_mean(graph, *args, **kwargs):
        graph.pixel_mean = graph.pixel_mean + 1
        traced = trace(graph, *args, **kwargs)
        graph.pixel_mean = graph.pixel_mean - 1
        return traced

    monkeypatch.setattr(torch.jit, 'trace', trace_with_another_mean)
    arguments = (path, checkpoint, '--format', 'torchscript', '--shape', 64, 64, '--out', file)
    _, error = call_tool(TOOL, *arguments)
    assert error.startswith('error: on 1 x 64 x 64 images the file differs from the model by')
    assert not file.exists()
    _, error = call_tool(TOOL, *arguments, '--tolerance', 1)
    assert not error and file.exists()


@pytest.mark.parametrize(
    'config, options, message',
    [
        (
            models.CLASSIFIER,
            ('--format', 'torchscript', '--dynamic', '--shape', 64, 32),
            '--shape must be at least 64, got 64 and 32',
        ),
        (
            models.CLASSIFIER,
            ('--format', 'torchscript', '--out', 'a.onnx'),
            '--out: the name of a file in format torchscript must end in .pt, got a.onnx',
        ),
        (
            models.CLASSIFIER,
            ('--format', 'torchscript', '--device', 'cuda:99'),
            "there is no device 'cuda:99'; available are cpu",
        ),
        (
            models.CLASSIFIER,
            ('--format', 'torch-export', '--half'),
            '--half is only for --format onnx, got torch-export',
        ),
        (models.DINO, ('--format', 'onnx', '--shape', 128, 128, '--half'), '--half is not for detectors'),
    ],
)
def test_bad_options_are_errors(config, options, message, tmp_path, call_tool, monkeypatch):
    path, checkpoint, _ = models.write_small_model(config, tmp_path)
    _, error = call_tool(TOOL, path, checkpoint, *options)
    assert error.startswith('error: ') and message in error
