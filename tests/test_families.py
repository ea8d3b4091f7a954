"""Every family of configs trains and predicts, at a small arch, on the sample data."""

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope

from revcol_mm.ops import check_reconstruction

from .conftest import CUDA
from .subprocesses import REPO

FAMILIES = {
    'mask2former_revcol_nano_sample': 'ade20k',
    'mask2former_revcol_nano_instance_sample': 'coco',
    'mask2former_revcol_nano_panoptic_sample': 'coco',
    'upernet_revcol_nano_sample': 'ade20k',
    'upernet_revcol_nano_supervised_sample': 'ade20k',
    'dino_revcol_nano_sample': 'coco',
    'cascade_mask_rcnn_revcol_nano_sample': 'coco',
    'revcol_nano_sample': 'imagenet',
}


def test_every_sample_config_is_tested():
    assert set(FAMILIES) == {path.stem for path in (REPO / 'configs').glob('*_sample.py')}


@pytest.fixture(params=FAMILIES)
def family(request, sample_data, device):
    """Return a family's config, its model with reversible training, and four training samples."""
    cfg = Config.fromfile(REPO / f'configs/{request.param}.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.save_memory = True
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = str(sample_data / FAMILIES[request.param])
    dataset = DATASETS.build(dataset)
    return cfg, model.to(device), [dataset[i] for i in range(4)]


def keep_objects(sample, number):
    """Remove all objects of a sample except the first ones; classification samples stay as they are."""
    sample = sample['data_samples']
    if 'gt_instances' in sample:
        sample.gt_instances = sample.gt_instances[:number]
    elif 'gt_sem_seg' in sample:
        labels = sample.gt_sem_seg.data
        objects = [label for label in labels.unique().tolist() if label not in (0, 255)]
        for label in objects[number:]:
            labels[labels == label] = 0


def test_training_lowers_the_loss_and_changes_every_parameter(family):
    """Among the four images are one without objects and one with one object."""
    cfg, model, samples = family
    keep_objects(samples[0], 0)
    keep_objects(samples[1], 1)
    optim_wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, clip_grad=None))
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    model.train()
    losses = []
    for _ in range(6):
        torch.manual_seed(0)  # the same denoising queries, masks and sampled regions in every step
        log = model.train_step(pseudo_collate(samples), optim_wrapper)
        losses.append(log['loss'].item())
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0], losses
    for name, param in model.named_parameters():
        # The alphas of the first column have no effect: there is no previous column.
        assert torch.equal(param, before[name]) == name.startswith('backbone.subnet0.alpha'), name


@pytest.mark.parametrize('device', [CUDA], indirect=True)
def test_mixed_precision_training_is_exactly_reversible(family):
    cfg, model, samples = family
    wrapper = dict(cfg.optim_wrapper, type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0)
    optim_wrapper = build_optim_wrapper(model, wrapper)
    model.train()
    losses = []
    for _ in range(3):
        torch.manual_seed(0)
        losses.append(model.train_step(pseudo_collate(samples), optim_wrapper)['loss'].item())
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0], losses
    check_reconstruction()


def test_images_without_objects_have_finite_loss_and_gradients(family):
    _, model, samples = family
    for sample in samples:
        keep_objects(sample, 0)
    model.train()
    data = model.data_preprocessor(pseudo_collate(samples), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_predictions_are_finite_and_have_the_image_size(family):
    cfg, model, samples = family
    for sample in samples:
        (prediction,) = model.eval().test_step(pseudo_collate([sample]))
        if cfg.default_scope == 'mmseg':
            assert prediction.pred_sem_seg.data.shape == (1, *sample['data_samples'].ori_shape)
            assert prediction.seg_logits.data.isfinite().all()
        elif cfg.default_scope == 'mmdet':
            instances, (height, width) = prediction.pred_instances, sample['data_samples'].ori_shape
            assert instances.labels.max() < 10 if len(instances) else True
            limits = torch.tensor([width, height, width, height]) + 1e-3  # rounding of the rescaled boxes
            instances = instances.cpu()
            assert ((instances.bboxes >= 0) & (instances.bboxes <= limits)).all()
            assert instances.scores.isfinite().all()
            if 'masks' in instances:
                assert instances.masks.shape[1:] == (height, width)
            fusion_head = cfg.model.get('panoptic_fusion_head', {})
            assert ('pred_panoptic_seg' in prediction) == (fusion_head.get('num_stuff_classes', 0) > 0)
            if 'pred_panoptic_seg' in prediction:
                segments = prediction.pred_panoptic_seg.sem_seg
                assert segments.shape == (1, height, width)
                assert ((segments >= 0) & (segments % 1000 <= 11)).all()  # 11: no segment
        else:
            assert prediction.pred_score.sum().item() == pytest.approx(1, abs=1e-5)
