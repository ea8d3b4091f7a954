"""Published checkpoints load as they are; nothing that is pickled in a file runs."""

import builtins
import pickle
import sys
import types

import pytest
import torch

from revcol_mm import RevCol
from revcol_mm.models.checkpoint import load_backbone, read_checkpoint

SMALL = dict(channels=(8, 16, 24, 32), layers=(1, 1, 1, 1), num_columns=2)


@pytest.fixture
def source():
    """A backbone whose every weight is its own."""
    model = RevCol(arch=SMALL)
    for param in model.parameters():
        torch.nn.init.normal_(param)
    return model


@pytest.fixture
def published(source, tmp_path, monkeypatch):
    """A checkpoint as RevCol's authors write them, yacs config and builtin included."""
    yacs = types.ModuleType('yacs.config')
    yacs.CfgNode = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    config = yacs.CfgNode(MODEL=yacs.CfgNode(TYPE='revcol_tiny'))
    config.frozen = True
    heads = {
        'cls_blocks.0.classifier.1.weight': torch.rand(10, 32),
        'decoder_blocks.0.projback.0.bias': torch.rand(48),
    }
    weights = {f'module.{k}': v for k, v in {**source.state_dict(), **heads}.items()}
    path = tmp_path / 'published.pth'
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
        patch.setitem(sys.modules, 'yacs.config', yacs)
        torch.save(
            {
                'model': weights,
                'config': config,
                'input': builtins.input,
                'epoch': 299,
                'lr': [0.1],
            },
            path,
        )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    return path


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


def test_a_file_without_weights_is_an_error(tmp_path):
    torch.save({'epoch': 3}, tmp_path / 'checkpoint.pth')
    with pytest.raises(ValueError, match='epoch'):
        load_backbone(RevCol(arch=SMALL), tmp_path / 'checkpoint.pth')


def test_a_missing_file_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth.*https://.*init_cfg=None'):
        load_backbone(RevCol(arch=SMALL), tmp_path / 'nowhere.pth')


def test_a_url_that_cannot_be_fetched_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    url = 'http://127.0.0.1:9/revcol_base_22k.pth'  # the discard port: nothing answers
    with pytest.raises(FileNotFoundError, match=r'127\.0\.0\.1:9/revcol.*hub/checkpoints/revcol.*=None'):
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
    except pickle.UnpicklingError:
        pass  # refused altogether, as torch does with calls to the system
    assert not marker.exists()


def test_checkpoints_in_the_format_before_torch_1_6_load(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    model = RevCol(arch=SMALL)
    load_backbone(model, tmp_path / 'old.pth')
    assert_same_weights(model, source)
