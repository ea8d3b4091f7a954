"""LoadFromHook: `load_from` takes checkpoints of every layout, and reports what matched."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from mmengine.runner import Runner

from revcol_mm import LoadFromHook, RevCol, RevColClassifier
from revcol_mm.errors import CheckpointError
from revcol_mm.unwrapped import unwrapped

from .checkpoints import (
    SMALL,
    Segmentor,
    assert_same_weights,
    load_from,
    randomize,
    save_mmcv1,
    save_published,
)


def test_published_classification_checkpoint_gives_the_backbone(source, published, tmp_path):
    model = Segmentor()
    logged = load_from(published, model, tmp_path)
    assert_same_weights(model.backbone.state_dict(), source.state_dict())
    assert f'published.pth into Segmentor:\n  matched {len(source.state_dict())}' in logged
    assert "missing 6: ['decode_head.weight'" in logged
    assert "unexpected 2, by module: {'cls_blocks': 1, 'decoder_blocks': 1}" in logged


def test_detection_or_segmentation_checkpoint_gives_backbone_and_heads(tmp_path):
    trained, model = randomize(Segmentor()), Segmentor()
    load_from(save_mmcv1(tmp_path / 'mmcv1.pth', trained), model, tmp_path, strict=True)
    assert_same_weights(model.state_dict(), trained.state_dict())


@pytest.mark.parametrize('supervision', [None, dict(reconstruction_weight=3.0, classification_weight=0.7)])
def test_published_classification_checkpoint_gives_a_classifier_s_heads(supervision, tmp_path):
    arch = dict(SMALL, num_columns=4)
    normalise = dict(type='ImgDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3)
    trained, model = (
        RevColClassifier(RevCol(arch), 10, supervision, data_preprocessor=MODELS.build(normalise))
        for _ in range(2)
    )
    weights = {n.removeprefix('backbone.'): weight for n, weight in randomize(trained).state_dict().items()}
    load_from(save_published(tmp_path / 'published.pth', weights), model, tmp_path, strict=True)
    assert_same_weights(model.state_dict(), trained.state_dict())


def test_url_error_names_the_cache_path_where_a_file_is_then_found(published, tmp_path, monkeypatch, source):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    url = 'https://nowhere.invalid/revcol_tiny_1k.pth'
    with pytest.raises(CheckpointError) as error:
        load_from(url, Segmentor(), tmp_path)
    published.rename(Path(re.search('by other means to (.*?pth)', str(error.value))[1]))
    model = Segmentor()
    load_from(url, model, tmp_path)
    assert_same_weights(model.backbone.state_dict(), source.state_dict())


def test_missing_file_error_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r'no checkpoint .*nowhere\.pth.*load_from=None'):
        load_from(tmp_path / 'nowhere.pth', Segmentor(), tmp_path)


def test_error_in_testing_does_not_suggest_load_from_none(tmp_path):
    with pytest.raises(CheckpointError, match=r'no checkpoint .*nowhere\.pth') as error:
        load_from(tmp_path / 'nowhere.pth', Segmentor(), tmp_path, strict=True)
    assert 'load_from=None' not in str(error.value)


def test_checkpoint_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    save_mmcv1(tmp_path / 'mmcv1.pth', Segmentor())
    assert 'matched' in load_from('~/mmcv1.pth', Segmentor(), tmp_path)


def test_missing_weight_of_the_backbone_is_named(tmp_path):
    path = save_mmcv1(tmp_path / 'mmcv1.pth', Segmentor())
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint['state_dict']['backbone.stem.0.bias']
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r'missing 1.*backbone\.stem\.0\.bias'):
        load_from(path, Segmentor(), tmp_path)


def test_head_for_other_classes_is_left_unchanged_unless_strict(tmp_path):
    trained, model = randomize(Segmentor()), Segmentor(num_classes=7)
    before = model.decode_head.weight.clone()
    path = save_mmcv1(tmp_path / 'mmcv1.pth', trained)
    logged = load_from(path, model, tmp_path / 'a')
    assert_same_weights(model.backbone.state_dict(), trained.backbone.state_dict())
    assert torch.equal(model.decode_head.weight, before)
    assert "different shapes 2: ['decode_head.weight (5, 8" in logged
    with pytest.raises(CheckpointError, match=r'different shapes 2.*decode_head\.weight'):
        load_from(path, model, tmp_path / 'b', strict=True)


def test_ema_model_gets_the_weights_too(source, published, tmp_path):
    ema = EMAHook(strict_load=False)
    load_from(published, Segmentor(), tmp_path, ema)
    assert_same_weights(ema.ema_model.module.backbone.state_dict(), source.state_dict())


class Augmented(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        pass


def test_all_wrappers_of_a_model_are_removed():
    model = Segmentor()
    assert unwrapped(model) is model
    assert unwrapped(torch.nn.DataParallel(Augmented(model))) is model


def test_resuming_is_left_to_mmengine(tmp_path):
    runner = Runner(
        Segmentor(), str(tmp_path), load_from='iter_3.pth', resume=True, experiment_name=str(tmp_path)
    )
    LoadFromHook().before_run(runner)
    assert runner._load_from == 'iter_3.pth'
