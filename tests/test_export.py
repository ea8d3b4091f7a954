"""An evaluating backbone can be exported, however it trains, and computes the same when it is."""

import copy

import pytest
import torch

from revcol_mm import RevCol

WIDTHS = dict(channels=(8, 16, 24, 32), layers=(1, 1, 2, 1))


@pytest.fixture(params=[False, True], ids=['plain', 'save_memory'])
def evaluating(request):
    """A model, an image of a size that no power of two divides, and the features."""
    model = RevCol(arch=dict(WIDTHS, num_columns=3), save_memory=request.param).eval()
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
