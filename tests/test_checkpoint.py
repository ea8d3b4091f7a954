"""Published checkpoints load as they are; nothing that is pickled in a file runs."""

import builtins
import json
import pickle
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from revcol_mm import LoadFromHook, RevCol, RevColClassifier
from revcol_mm.checkpoints.fitting import load_backbone
from revcol_mm.checkpoints.reading import read_checkpoint
from revcol_mm.errors import CheckpointError

from .conftest import DATA
from .subprocesses import REPO

SMALL = dict(channels=(8, 16, 24, 32), layers=(1, 1, 1, 1), num_columns=2)


def randomize(model):
    """Give a model weights that no other has."""
    for param in model.parameters():
        torch.nn.init.normal_(param)
    return model


@pytest.fixture
def source():
    """A backbone whose every weight is its own."""
    return randomize(RevCol(arch=SMALL))


def save_published(path, weights, **others):
    """Write a checkpoint as RevCol's authors write them, yacs config and builtin included."""
    yacs = types.ModuleType('yacs.config')
    yacs.CfgNode = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    config = yacs.CfgNode(MODEL=yacs.CfgNode(TYPE='revcol_tiny'))
    config.frozen = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
        patch.setitem(sys.modules, 'yacs.config', yacs)
        others = {'config': config, 'input': builtins.input, 'epoch': 299, 'lr': [0.1], **others}
        torch.save({'model': weights, **others}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    return path


@pytest.fixture
def published(source, tmp_path):
    """A published classification checkpoint."""
    heads = {
        'cls_blocks.0.classifier.1.weight': torch.rand(10, 32),
        'decoder_blocks.0.projback.0.bias': torch.rand(48),
    }
    weights = {f'module.{k}': v for k, v in {**source.state_dict(), **heads}.items()}
    return save_published(tmp_path / 'published.pth', weights)


def assert_same_weights(model, source):
    for (name, weight), expected in zip(model.state_dict().items(), source.state_dict().values()):
        assert torch.equal(weight, expected), name


def test_a_published_checkpoint_loads_as_it_is(source, published):
    model = RevCol(arch=SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(published)))
    model.init_weights()
    assert_same_weights(model, source)


def test_the_report_tells_matched_missing_and_unexpected_keys(source, published, log_messages):
    report = load_backbone(RevCol(arch=SMALL), published)
    assert set(report.matched) == set(source.state_dict())
    assert report.missing == report.mismatched == report.padded == []
    assert sorted(name.split('.')[0] for name in report.unexpected) == [
        'cls_blocks',
        'decoder_blocks',
    ]
    (logged,) = log_messages
    assert f'matched {len(report.matched)}' in logged
    assert 'missing 0' in logged and "'cls_blocks': 1" in logged


@pytest.mark.parametrize('wrap', [lambda w: w, lambda w: {'state_dict': w}, lambda w: {'model': w}])
@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.'])
def test_every_published_nesting_and_prefix_loads(source, tmp_path, wrap, prefix):
    weights = {prefix + k: v for k, v in source.state_dict().items()}
    if 'backbone.' in prefix:
        weights['decode_head.conv_seg.weight'] = torch.rand(150, 32, 1, 1)
    torch.save(wrap(weights), tmp_path / 'checkpoint.pth')
    model = RevCol(arch=SMALL)
    load_backbone(model, tmp_path / 'checkpoint.pth')
    assert_same_weights(model, source)


def test_a_missing_weight_is_an_error_that_names_it(source, tmp_path):
    weights = source.state_dict()
    del weights['subnet1.alpha2']
    torch.save(weights, tmp_path / 'checkpoint.pth')
    with pytest.raises(RuntimeError, match=r'missing 1.*subnet1\.alpha2'):
        load_backbone(RevCol(arch=SMALL), tmp_path / 'checkpoint.pth')


def test_another_shape_is_an_error_that_names_it_and_leaves_the_model_alone(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / 'checkpoint.pth')
    model = RevCol(arch=dict(SMALL, channels=(8, 16, 24, 40)))
    before = model.stem[0].weight.clone()
    with pytest.raises(RuntimeError, match=r'subnet0\.alpha3.*32.*40'):
        load_backbone(model, tmp_path / 'checkpoint.pth')
    assert torch.equal(model.stem[0].weight, before)


@pytest.mark.parametrize(
    'other, told',
    [
        (dict(num_columns=4), '4 columns'),
        (dict(num_columns=1), '1 columns'),
        (dict(layers=(1, 1, 2, 1)), r'layers \[1, 1, 2, 1\]'),
        (dict(channels=(4, 8, 12, 16)), r'channels \[4, 8, 12, 16\]'),
    ],
)
def test_another_arch_is_an_error_that_names_both(source, tmp_path, other, told):
    """Fewer columns or blocks than the checkpoint has, too, though all of the model's weights are there."""
    torch.save(source.state_dict(), tmp_path / 'checkpoint.pth')
    own = r'2 columns, channels \[8, 16, 24, 32\], layers \[1, 1, 1, 1\]'
    with pytest.raises(CheckpointError, match=rf'checkpoint has {own}\n  the model has .*{told}'):
        load_backbone(RevCol(arch={**SMALL, **other}), tmp_path / 'checkpoint.pth')


def test_a_file_without_weights_is_an_error(tmp_path):
    torch.save({'epoch': 3}, tmp_path / 'checkpoint.pth')
    with pytest.raises(CheckpointError, match='epoch'):
        load_backbone(RevCol(arch=SMALL), tmp_path / 'checkpoint.pth')


def test_a_missing_file_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth.*https://.*init_cfg=None'):
        load_backbone(RevCol(arch=SMALL), tmp_path / 'nowhere.pth')


def test_a_url_that_cannot_be_fetched_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    url = 'http://127.0.0.1:9/revcol_base_22k.pth'  # the discard port: nothing answers
    with pytest.raises(FileNotFoundError, match=r'127\.0\.0\.1:9/revcol.*hub/checkpoints/\w+/revcol.*=None'):
        load_backbone(RevCol(arch=SMALL), url)


def test_3x3_weights_are_padded_into_a_7x7_model_without_changing_it(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / 'checkpoint.pth')
    model = RevCol(arch=SMALL, kernel_size=7)
    report = load_backbone(model, tmp_path / 'checkpoint.pth')
    assert len(report.padded) == sum(name.endswith('dwconv.weight') for name in model.state_dict())
    image = torch.rand(1, 3, 64, 64)
    for padded, expected in zip(model.eval()(image), source.eval()(image)):
        torch.testing.assert_close(padded, expected, rtol=1e-4, atol=1e-4)


def test_7x7_weights_do_not_fit_a_3x3_model(tmp_path):
    torch.save(RevCol(arch=SMALL, kernel_size=7).state_dict(), tmp_path / 'checkpoint.pth')
    with pytest.raises(RuntimeError, match=r'dwconv\.weight.*7, 7.*3, 3'):
        load_backbone(RevCol(arch=SMALL), tmp_path / 'checkpoint.pth')


class RunsCode:
    """Unpickled the unsafe way, this calls ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('function', ['exec', 'os.system', 'subprocess.call'])
def test_code_that_is_pickled_in_a_checkpoint_does_not_run(source, tmp_path, function):
    marker = tmp_path / 'it_ran'
    call = {
        'exec': (exec, f'open({str(marker)!r}, "w")'),
        'os.system': (__import__('os').system, f'touch {marker}'),
        'subprocess.call': (__import__('subprocess').call, ['touch', str(marker)]),
    }[function]
    path = tmp_path / 'malicious.pth'
    torch.save({'model': source.state_dict(), 'config': RunsCode(*call)}, path)
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file does what it is made for
    marker.unlink()
    try:
        assert read_checkpoint(path)['config'] == {}
    except CheckpointError:
        pass  # refused altogether, as torch does with calls to the system
    assert not marker.exists()


def test_checkpoints_in_the_format_before_torch_1_6_load(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    model = RevCol(arch=SMALL)
    load_backbone(model, tmp_path / 'old.pth')
    assert_same_weights(model, source)


class Segmentor(BaseModel):
    """A whole model of OpenMMLab's layout, as small as it gets."""

    def __init__(self, num_classes=5, **arch):
        super().__init__()
        self.backbone = RevCol(arch={**SMALL, **arch})
        self.decode_head = torch.nn.Conv2d(8, num_classes, 1)
        self.norm = torch.nn.BatchNorm2d(1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.decode_head(self.backbone(inputs)[0])


def save_mmcv1(path, model):
    """Write a checkpoint as mmcv 1.x does."""
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')}
    meta = dict(mmcv_version='1.7.0', CLASSES=('wall', 'sky'), epoch=36)
    optimizer = dict(state={0: dict(step=3)}, param_groups=[dict(lr=1e-4, params=[0])])
    torch.save(dict(meta=meta, state_dict=weights, optimizer=optimizer), path)
    return path


def load_from(source, model, work_dir, *hooks, strict=False):
    """Have MMEngine's runner do what it does for ``load_from`` before it tests; return what it logs."""
    runner = Runner(model, str(work_dir), load_from=str(source), experiment_name=str(work_dir))
    for hook in (LoadFromHook(strict), *hooks):
        runner.register_hook(hook)
    runner.call_hook('before_run')
    runner.load_or_resume()
    return ''.join(path.read_text() for path in Path(runner.log_dir).glob('*.log'))


def test_load_from_takes_a_published_classification_checkpoint_and_reports(source, published, tmp_path):
    model = Segmentor()
    logged = load_from(published, model, tmp_path)
    assert_same_weights(model.backbone, source)
    assert f'published.pth into Segmentor:\n  matched {len(source.state_dict())}' in logged
    assert "missing 6: ['decode_head.weight'" in logged
    assert "unexpected 2, by module: {'cls_blocks': 1, 'decoder_blocks': 1}" in logged


def test_load_from_takes_a_detection_or_segmentation_checkpoint_with_its_heads(tmp_path):
    trained, model = randomize(Segmentor()), Segmentor()
    load_from(save_mmcv1(tmp_path / 'mmcv1.pth', trained), model, tmp_path, strict=True)
    assert_same_weights(model, trained)


@pytest.mark.parametrize('supervision', [None, dict(reconstruction_weight=3.0, classification_weight=0.7)])
def test_load_from_takes_a_classifier_s_heads(supervision, tmp_path):
    arch = dict(SMALL, num_columns=4)
    normalise = dict(type='ImgDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3)
    trained, model = (
        RevColClassifier(RevCol(arch), 10, supervision, data_preprocessor=MODELS.build(normalise))
        for _ in range(2)
    )
    randomize(trained)
    weights = {name.removeprefix('backbone.'): weight for name, weight in trained.state_dict().items()}
    load_from(save_published(tmp_path / 'published.pth', weights), model, tmp_path, strict=True)
    assert_same_weights(model, trained)


def test_load_from_takes_a_url(published, tmp_path, monkeypatch, source):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    url = 'https://nowhere.invalid/revcol_tiny_1k.pth'
    with pytest.raises(CheckpointError) as error:
        load_from(url, Segmentor(), tmp_path)
    place = Path(re.search('by other means to (.*?pth)', str(error.value))[1])
    published.rename(place)  # as the error says
    model = Segmentor()
    load_from(url, model, tmp_path)
    assert_same_weights(model.backbone, source)


def test_load_from_without_a_checkpoint_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r'no checkpoint .*nowhere\.pth.*load_from=None'):
        load_from(tmp_path / 'nowhere.pth', Segmentor(), tmp_path)


def test_load_from_without_a_backbone_s_weight_is_an_error_that_names_it(tmp_path):
    path = save_mmcv1(tmp_path / 'mmcv1.pth', Segmentor())
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint['state_dict']['backbone.stem.0.bias']
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r'missing 1.*backbone\.stem\.0\.bias'):
        load_from(path, Segmentor(), tmp_path)


def test_load_from_of_another_arch_is_an_error_that_names_both(tmp_path):
    path = save_mmcv1(tmp_path / 'mmcv1.pth', Segmentor())
    with pytest.raises(CheckpointError, match='checkpoint has 2 columns.*\n.*model has 3 columns'):
        load_from(path, Segmentor(num_columns=3), tmp_path)


def test_load_from_leaves_a_head_for_other_classes_as_it_is_unless_strict(tmp_path):
    trained, model = randomize(Segmentor()), Segmentor(num_classes=7)
    before = model.decode_head.weight.clone()
    path = save_mmcv1(tmp_path / 'mmcv1.pth', trained)
    logged = load_from(path, model, tmp_path / 'a')
    assert_same_weights(model.backbone, trained.backbone)
    assert torch.equal(model.decode_head.weight, before)
    assert "of another shape 2: ['decode_head.weight (5, 8" in logged
    with pytest.raises(CheckpointError, match=r'another shape 2.*decode_head\.weight'):
        load_from(path, model, tmp_path / 'b', strict=True)


def test_load_from_gives_averaged_weights_the_checkpoint_s_too(source, published, tmp_path):
    ema = EMAHook(strict_load=False)
    load_from(published, Segmentor(), tmp_path, ema)
    assert_same_weights(ema.ema_model.module.backbone, source)


def test_load_from_pads_kernels(source, published, tmp_path):
    model = Segmentor()
    model.backbone = RevCol(arch=SMALL, kernel_size=7).eval()
    load_from(published, model, tmp_path)
    image = torch.rand(1, 3, 64, 64)
    for padded, expected in zip(model.backbone(image), source.eval()(image)):
        torch.testing.assert_close(padded, expected, rtol=1e-4, atol=1e-4)


def test_load_from_does_not_run_code_that_is_pickled_in_a_checkpoint(tmp_path):
    marker, path = tmp_path / 'it_ran', tmp_path / 'malicious.pth'
    code = RunsCode(exec, f'open({str(marker)!r}, "w")')
    torch.save({'state_dict': Segmentor().state_dict(), 'config': code}, path)
    load_from(path, Segmentor(), tmp_path)
    assert not marker.exists()


def test_resuming_is_left_to_mmengine(tmp_path):
    runner = Runner(
        Segmentor(), str(tmp_path), load_from='iter_3.pth', resume=True, experiment_name=str(tmp_path)
    )
    LoadFromHook().before_run(runner)
    assert runner._load_from == 'iter_3.pth'


@pytest.mark.parametrize(
    'config, scope, kind',
    [
        ('cascade_mask_rcnn_revcol_t_coco', 'mmdet', 'detection'),
        ('upernet_revcol_t_ade20k', 'mmseg', 'segmentation'),
    ],
)
def test_published_heads_are_named_as_in_today_s_openmmlab(config, scope, kind):
    """MMDetection 2 and MMSegmentation 0 give RevCol's released models the same names and shapes."""
    published = json.loads((DATA / 'mmcv1_head_keys.json').read_text())[kind]
    pytest.importorskip(scope)
    init_default_scope(scope)
    with torch.device('meta'):
        model = MODELS.build(Config.fromfile(REPO / f'configs/{config}.py').model)
    heads = {k: list(v.shape) for k, v in model.state_dict().items() if not k.startswith('backbone.')}
    assert heads == published
