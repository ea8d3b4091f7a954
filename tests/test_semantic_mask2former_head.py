"""Mask2Former's head for semantic segmentation: sliding windows and ignored pixels."""

import re

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.models.decode_heads import Mask2FormerHead
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn
from torch.nn import functional as F

from revcol_mm.apis import init_inferencer, init_model
from revcol_mm.errors import PreflightError
from revcol_mm.models.semantic_mask2former_head import IGNORED, SemanticMask2FormerHead
from revcol_mm.preflight import check_sliding_windows

from .subprocesses import REPO, run
from .test_tools import on

CONFIG = 'configs/mask2former_revcol_nano_sample.py'
SIZE = (96, 160)


def model_with(test_cfg, head='SemanticMask2FormerHead'):
    torch.manual_seed(0)
    cfg = Config.fromfile(REPO / CONFIG)
    cfg.model.decode_head.type = head
    cfg.model.test_cfg = test_cfg
    return init_model(cfg, device='cpu')


def sliding(crop, stride):
    return dict(mode='slide', crop_size=crop, stride=stride)


def predict(model, image, pad=True):
    """Return the scores from the segmentor's ``predict``; pad adds the data preprocessor's ``pad_shape``."""
    size = tuple(image.shape[2:])
    meta = dict(img_shape=size, ori_shape=size, **(dict(pad_shape=size) if pad else {}))
    with torch.no_grad():
        (sample,) = model.predict(image, [SegDataSample(metainfo=meta)])
    return sample.seg_logits.data


@pytest.mark.parametrize('pad', [True, False])
def test_window_over_the_whole_image_equals_whole_mode(pad):
    model, image = model_with(dict(mode='whole')), torch.randn(1, 3, *SIZE)
    whole = predict(model, image, pad)
    for crop in (SIZE, (200, 200)):
        model.test_cfg = ConfigDict(sliding(crop, (64, 64)))
        torch.testing.assert_close(predict(model, image, pad), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('crop, stride', [((64, 64), (43, 43)), ((64, 96), (64, 96)), ((50, 70), (31, 33))])
def test_windows_of_any_size_cover_the_image(crop, stride):
    model = model_with(sliding(crop, stride))
    scores = predict(model, torch.randn(1, 3, *SIZE))
    assert scores.shape == (11, *SIZE) and scores.isfinite().all()


def test_batch_gives_the_scores_of_its_images():
    model, images = model_with(sliding((64, 64), (43, 43))), torch.randn(2, 3, *SIZE)
    meta = dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE)
    with torch.no_grad():
        samples = model.predict(images, [SegDataSample(metainfo=meta) for _ in images])
    for image, sample in zip(images, samples):
        torch.testing.assert_close(sample.seg_logits.data, predict(model, image[None]), rtol=1e-3, atol=1e-4)


def test_local_predictions_are_equal_in_windows_and_whole_mode():
    """The masks are the mean brightness of cells of 4 pixels, which does not depend on the window."""
    model = model_with(dict(mode='whole'))
    model.extract_feat = lambda image: image
    classes = torch.randn(1, 20, 12)

    def local(image, samples):
        brightness = F.avg_pool2d(image.mean(1, keepdim=True), 4)
        return [classes.expand(len(image), -1, -1)], [brightness * torch.arange(20.0)[:, None, None]]

    model.decode_head.forward = local
    image = torch.randn(1, 3, *SIZE)
    whole = predict(model, image)
    model.test_cfg = ConfigDict(sliding((64, 64), (32, 32)))
    difference = (predict(model, image) - whole).abs().amax(0)
    edges = torch.zeros(SIZE, dtype=torch.bool)  # interpolation differs at the borders of windows
    for edge in range(0, SIZE[0], 32):
        edges[max(0, edge - 2) : edge + 2] = True
    for edge in range(0, SIZE[1], 32):
        edges[:, max(0, edge - 2) : edge + 2] = True
    assert difference[~edges].max() < 1e-5 and (~edges).float().mean() > 0.7


def test_sliding_windows_with_mmsegmentation_s_head_are_an_error():
    """When MMSegmentation's head no longer fails, the override of ``predict`` can be removed."""
    test_cfg = sliding((64, 64), (43, 43))
    with pytest.raises(PreflightError, match="decode_head.type='SemanticMask2FormerHead'.*custom_imports"):
        model_with(test_cfg, 'Mask2FormerHead')
    model = model_with(dict(mode='whole'), 'Mask2FormerHead')
    check_sliding_windows(model)
    assert type(model.decode_head) is Mask2FormerHead
    model.test_cfg = ConfigDict(test_cfg)
    with pytest.raises(RuntimeError, match='size of tensor a .* must match'):
        predict(model, torch.randn(1, 3, *SIZE))


def test_check_of_sliding_windows_accepts_other_models():
    model = nn.Module()
    model.decode_head, model.test_cfg = nn.ModuleList(), dict(mode='slide')
    check_sliding_windows(model)
    model.test_cfg = [dict(mode='slide')]
    check_sliding_windows(model)


def test_weights_are_compatible_with_mmsegmentation_s_head():
    ours, theirs = (
        model_with(dict(mode='whole'), head) for head in ('SemanticMask2FormerHead', 'Mask2FormerHead')
    )
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, *SIZE)
    assert torch.equal(predict(ours, image), predict(theirs, image))


def head_loss(labels, scores, masks, ignore_index=255, cls=SemanticMask2FormerHead, **options):
    """Return the sum of the mask losses for given predictions, with the same sampled points in every call."""
    cfg = Config.fromfile(REPO / CONFIG)
    if cls is SemanticMask2FormerHead:
        options.setdefault('leave_out_ignored', True)
    head_cfg = dict(cfg.model.decode_head, type=cls.__name__, ignore_index=ignore_index, **options)
    with DefaultScope.overwrite_default_scope('mmseg'):
        head = MODELS.build(head_cfg)
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels[None]), metainfo=dict(img_shape=labels.shape))
    instances, metas = head._seg_data_to_instance_data([sample])
    torch.manual_seed(1)
    losses = head.loss_by_feat([scores], [masks], instances, metas)
    return sum(value for name, value in losses.items() if 'mask' in name or 'dice' in name)


@pytest.fixture
def picture():
    """Return labels of two classes whose right quarter is 255, class scores and masks."""
    labels = torch.zeros(64, 64, dtype=torch.long)
    labels[:, 24:48] = 3
    labels[:, 48:] = 255
    scores = torch.randn(1, 20, 12)
    masks = torch.randn(1, 20, 16, 16)
    return labels, scores, masks


@pytest.mark.parametrize('ignored', [255, 11, 10])
def test_ignored_pixels_have_no_gradient(ignored, picture):
    labels, scores, masks = picture
    labels[labels == 255] = ignored
    masks.requires_grad_()
    loss = head_loss(labels, scores, masks, ignored)
    (gradient,) = torch.autograd.grad(loss, masks)
    columns = gradient.abs().sum((0, 1, 2))
    assert not columns[13:].any()  # interpolation at labelled pixels reaches column 12
    assert (columns[:12] > 0).all() and gradient.isfinite().all()


def test_default_loss_is_that_of_mmsegmentation_which_includes_ignored_pixels(picture):
    """When MMSegmentation excludes ignored pixels, the overrides can be removed."""
    labels, scores, masks = picture
    masks.requires_grad_()
    theirs = head_loss(labels, scores, masks, cls=Mask2FormerHead)
    assert torch.equal(head_loss(labels, scores, masks, leave_out_ignored=False), theirs)
    (gradient,) = torch.autograd.grad(theirs, masks)
    assert gradient[..., 13:].abs().sum() > 0


def test_loss_without_ignored_pixels_is_that_of_mmsegmentation(picture):
    labels, scores, masks = picture
    labels[labels == 255] = 0
    ours, theirs = (
        head_loss(labels, scores, masks, cls=cls) for cls in (SemanticMask2FormerHead, Mask2FormerHead)
    )
    assert torch.equal(ours, theirs) and ours > 0


def test_image_with_only_ignored_pixels_has_a_finite_loss(picture):
    _, scores, masks = picture
    masks.requires_grad_()
    loss = head_loss(torch.full((64, 64), 255), scores, masks)
    loss.backward()
    assert loss.isfinite() and masks.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_ignored_pixels_have_no_gradient_in_mixed_precision(dtype, picture):
    labels, scores, masks = picture
    masks.requires_grad_()
    with torch.autocast('cpu', dtype):
        loss = head_loss(labels, scores, masks)
    loss.backward()
    assert loss.isfinite() and not masks.grad[..., 13:].any() and masks.grad[..., :12].any()
    assert torch.tensor(IGNORED, dtype=dtype).isfinite()


@pytest.mark.slow
def test_tools_and_inferencer_use_sliding_windows(sample_data, tmp_path):
    config = tmp_path / 'config.py'
    windows = sliding((64, 64), (43, 43))
    config.write_text(f"_base_ = ['{REPO / CONFIG}']\nmodel = dict(test_cfg={windows})\n")
    cfg = Config.fromfile(config)
    model = init_model(cfg, device='cpu')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    options = on(sample_data, 'ade20k')
    out = tmp_path / 'out'
    arguments = ('tools/test.py', config, tmp_path / 'a.pth', '--work-dir', tmp_path / 'work')
    printed = run(*arguments, '--out', out, *options)
    assert re.search(r'^mIoU +\d', printed, re.M)
    assert re.search(r'^mIoU +\d', run(*arguments, '--tta', *options), re.M)
    printed = run(*arguments, *options, 'model.decode_head.type=Mask2FormerHead', expect=1)
    assert "error: Mask2FormerHead of MMSegmentation does not work with test_cfg.mode='slide'" in printed

    inferencer = init_inferencer(cfg, tmp_path / 'a.pth', 'cpu')
    for path in sorted((sample_data / 'ade20k/images/validation').iterdir())[:2]:
        (sample,) = inferencer.predict([inferencer.read(path)])
        tested = np.asarray(Image.open(out / f'{path.stem}.png')).astype(int) - 1
        assert (inferencer.labels(sample) == tested).mean() > 0.999
