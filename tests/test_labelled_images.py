"""Images and labels that analyses load from a config's data sets."""

import pytest
import torch
from mmengine.config import Config

from revcol_mm.analysis import labelled_images
from revcol_mm.analysis.labelled_images import UNLABELLED, LabelledImages, label_shares

from .random_checkpoint import CLASSIFIER, SEGMENTOR, config_on
from .subprocesses import REPO


def test_labels_of_detection_and_segmentation_agree(sample_data):
    """Both data sets have the same scenes, but other transforms resize their images and labels."""
    detection, segmentation = (
        LabelledImages(config_on(sample_data, name, layout), 'val', 4, size=(128, 96))
        for name, layout in (('configs/dino_revcol_nano_sample.py', 'coco'), (SEGMENTOR, 'ade20k'))
    )
    (boxes,), (masks,) = detection.batches(), segmentation.batches()
    assert boxes.images.shape == (4, 3, 128, 96) and torch.equal(boxes.images, masks.images)
    assert detection.classes[-1] == 'background' and segmentation.classes[0] == 'background'
    digit = masks.labels > 0  # class 0 is the background
    same = boxes.labels[digit] == masks.labels[digit] - 1
    assert digit.sum() > 100 and same.float().mean() > 0.9  # other digits are inside a smaller box
    assert (masks.labels == UNLABELLED).any() and (boxes.labels == 10).float().mean() > 0.3


@pytest.mark.parametrize('shorter, side', [(360, 352), (300, 288), (800, 800), (10, 32)])
def test_default_size_is_a_multiple_of_32(shorter, side):
    cfg = Config.fromfile(REPO / 'configs/upernet_revcol_nano_camvid.py')
    cfg.test_dataloader.dataset.pipeline[1].scale = (1333, shorter)
    assert labelled_images.testing_size(cfg) == (side, side)


def test_shares_leave_out_unlabelled_pixels():
    labels = torch.zeros(1, 8, 16, dtype=torch.long)
    labels[0, :4, :8], labels[0, 4:, 8:] = 2, UNLABELLED
    shares = label_shares(labels, 3)
    assert shares.squeeze().tolist() == [[0.5, 0.5], [0, 0], [0.5, 0]]
    assert label_shares(torch.tensor([1, 0]), 2).tolist() == [[0, 1], [1, 0]]


def test_order_depends_on_the_epoch_and_number_is_limited(sample_data):
    cfg = config_on(sample_data, CLASSIFIER, 'imagenet')
    images = LabelledImages(cfg, 'train', 4, num_images=10, seed=1)
    first, again, second = (torch.cat([b.images for b in images.batches(epoch)]) for epoch in (0, 0, 1))
    assert len(images) == 3 and first.shape == (10, 3, 64, 64)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert LabelledImages(cfg, 'train', 4, num_images=10, drop_last=True).num_images == 8
