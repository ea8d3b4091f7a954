"""tools/convert_checkpoint.py and tools/publish_model.py: what they write, and their errors."""

import hashlib
import re
import sys

import pytest
import torch

from revcol_mm import RevCol
from revcol_mm.checkpoints.fitting import load_backbone
from revcol_mm.checkpoints.reading import read_checkpoint

from .checkpoints import (
    SMALL,
    Segmentor,
    assert_same_features,
    assert_same_weights,
    randomize,
    save_mmcv1,
    save_published,
)


@pytest.fixture
def run_tool(call_tool):
    """A function that runs a tool, and returns its output or its error message."""

    def run(tool, *arguments):
        printed, error = call_tool(f'tools/{tool}.py', *arguments)
        return error or printed

    return run


@pytest.fixture
def heads():
    return {'cls.classifier.1.weight': torch.rand(10, 32), 'cls.classifier.1.bias': torch.rand(10)}


@pytest.fixture
def published(source, heads, tmp_path):
    """A published classification checkpoint, whose EMA weights are its weights plus 1."""
    weights = {**source.state_dict(), **heads}
    ema = {name: weight + 1 for name, weight in weights.items()}
    return save_published(tmp_path / 'published.pth', weights, state_dict_ema=ema, optimizer={'state': {}})


@pytest.fixture
def ema_weights():
    return randomize(Segmentor()).state_dict()


@pytest.fixture
def run_checkpoint(ema_weights, tmp_path):
    """A checkpoint of a training run with MMEngine's EMAHook, which saves the average as 'state_dict'."""
    checkpoint = dict(
        meta=dict(iter=3, dataset_meta=dict(classes=('wall', 'sky'))),
        state_dict=ema_weights,
        ema_state_dict={f'module.{name}': weight + 1 for name, weight in ema_weights.items()},
        optimizer=dict(state={0: dict(exp_avg=torch.rand(3))}),
        message_hub=dict(log_scalars={}),
        param_schedulers=[dict(last_step=3)],
    )
    torch.save(checkpoint, tmp_path / 'iter_3.pth')
    return tmp_path / 'iter_3.pth'


def load(path):
    return torch.load(path, weights_only=True)


def prefixed(weights):
    return {f'backbone.{name}': weight for name, weight in weights.items()}


def test_published_classification_layout_converts_both_ways(source, heads, published, tmp_path, run_tool):
    ours, again = tmp_path / 'new/ours.pth', tmp_path / 'again.pth'
    assert 'ours.pth: 122 weights' in run_tool('convert_checkpoint', published, ours)
    assert load(ours).keys() == {'meta', 'state_dict'}
    assert_same_weights(load(ours)['state_dict'], {**prefixed(source.state_dict()), **heads})
    run_tool('convert_checkpoint', ours, again, '--to', 'published')
    assert_same_weights(load(again)['model'], {**source.state_dict(), **heads})


@pytest.mark.parametrize('layout', ['revcol_mm', 'published'])
def test_segmentation_checkpoint_keeps_names_and_classes(layout, tmp_path, run_tool):
    source = save_mmcv1(tmp_path / 'mmcv1.pth', randomize(Segmentor()))
    run_tool('convert_checkpoint', source, tmp_path / 'out.pth', '--to', layout)
    out = load(tmp_path / 'out.pth')
    assert out.keys() == {'meta', 'state_dict'} and out['meta']['CLASSES'] == ['wall', 'sky']
    assert_same_weights(out['state_dict'], load(source)['state_dict'])


def test_heads_are_dropped_on_request(source, published, tmp_path, run_tool):
    run_tool('convert_checkpoint', published, tmp_path / 'out.pth', '--drop-heads')
    assert_same_weights(load(tmp_path / 'out.pth')['state_dict'], prefixed(source.state_dict()))
    segmentor = save_mmcv1(tmp_path / 'mmcv1.pth', Segmentor())
    run_tool('convert_checkpoint', segmentor, tmp_path / 'out.pth', '--drop-heads', '--to', 'published')
    assert load(tmp_path / 'out.pth')['model'].keys() == source.state_dict().keys()


def test_published_ema_weights_are_converted_on_request(source, heads, published, tmp_path, run_tool):
    run_tool('convert_checkpoint', published, tmp_path / 'out.pth', '--ema', '--to', 'published')
    averaged = {name: weight + 1 for name, weight in {**source.state_dict(), **heads}.items()}
    assert_same_weights(load(tmp_path / 'out.pth')['model'], averaged)


def test_mmengine_s_ema_weights_are_converted_on_request(ema_weights, run_checkpoint, tmp_path, run_tool):
    run_tool('convert_checkpoint', run_checkpoint, tmp_path / 'out.pth', '--ema')
    assert_same_weights(load(tmp_path / 'out.pth')['state_dict'], ema_weights)


def test_missing_ema_weights_are_an_error(tmp_path, run_tool):
    source = save_published(tmp_path / 'published.pth', RevCol(arch=SMALL).state_dict(), state_dict_ema=None)
    error = run_tool('convert_checkpoint', source, tmp_path / 'out.pth', '--ema')
    assert error.startswith('error: no averaged weights') and not (tmp_path / 'out.pth').exists()


def test_padding_kernels_leaves_features_unchanged(source, published, tmp_path, run_tool):
    run_tool('convert_checkpoint', published, tmp_path / 'out.pth', '--pad-kernel', 7)
    padded = RevCol(arch=SMALL, kernel_size=7)
    assert load_backbone(padded, tmp_path / 'out.pth').padded == []
    assert_same_features(padded, source)


@pytest.mark.parametrize('size', [1, 4])
def test_impossible_kernel_size_is_an_error(size, published, tmp_path, run_tool):
    error = run_tool('convert_checkpoint', published, tmp_path / 'out.pth', '--pad-kernel', size)
    assert error == f'error: cannot zero-pad a kernel from size 3 to {size}'


def test_padding_weights_without_kernels_is_an_error(tmp_path, run_tool):
    torch.save(dict(state_dict={'backbone.norm.weight': torch.ones(4)}), tmp_path / 'swin.pth')
    error = run_tool('convert_checkpoint', tmp_path / 'swin.pth', tmp_path / 'out.pth', '--pad-kernel', 7)
    assert error == 'error: the backbone has no depthwise kernels (dwconv.weight) that could be padded'


@pytest.mark.parametrize('tool', ['convert_checkpoint', 'publish_model'])
def test_pickled_code_neither_runs_nor_is_copied(tool, tmp_path, run_tool, trap):
    code = trap.pickled()
    meta = dict(epoch=3, hook_msgs=code, CLASSES=('wall', code))
    torch.save(dict(meta=meta, state_dict=Segmentor().state_dict(), config=code), tmp_path / 'in.pth')
    run_tool(tool, tmp_path / 'in.pth', tmp_path / 'out.pth')
    assert not trap.has_run()
    (out,) = tmp_path.glob('out*.pth')
    assert load(out)['meta'] == dict(epoch=3, hook_msgs=None, CLASSES=['wall', None])


@pytest.mark.parametrize('name', ['published.pth', 'link.pth'])
def test_input_is_not_overwritten(name, published, tmp_path, run_tool):
    (tmp_path / 'link.pth').symlink_to(published)
    before = published.read_bytes()
    assert run_tool('convert_checkpoint', published, tmp_path / name).startswith(
        'error: OUT and IN are the same file, '
    )
    assert published.read_bytes() == before


def test_failure_leaves_the_previous_output(published, tmp_path, run_tool, monkeypatch):
    def fill_the_disk(checkpoint, file):
        file.write(b'half a checkpoint')
        raise OSError('No space left on device')

    (tmp_path / 'out.pth').write_text('previous')
    monkeypatch.setattr(torch, 'save', fill_the_disk)
    assert run_tool('convert_checkpoint', published, tmp_path / 'out.pth') == 'error: No space left on device'
    assert {path.name for path in tmp_path.iterdir()} == {'out.pth', 'published.pth'}
    assert (tmp_path / 'out.pth').read_text() == 'previous'


@pytest.mark.parametrize(
    'content, message',
    [
        (None, 'no checkpoint .*in.pth; published weights are at https://[^ ]*$'),
        ({'epoch': 3}, r"no weights in the checkpoint.*\['epoch'\]"),
        ([1, 2], 'cannot read .*in.pth: it holds a list, not a dict'),
        (
            {'conv1.weight': torch.zeros(1)},
            r"the checkpoint has no weights of a backbone; .*\['conv1.weight'\]",
        ),
    ],
)
def test_input_that_is_no_checkpoint_is_an_error(content, message, tmp_path, run_tool):
    if content is not None:
        torch.save(content, tmp_path / 'in.pth')
    error = run_tool('convert_checkpoint', tmp_path / 'in.pth', tmp_path / 'out.pth')
    assert re.match(f'error: {message}', error)


@pytest.mark.parametrize('tool', ['convert_checkpoint', 'publish_model'])
def test_output_with_another_suffix_is_an_error(tool, published, tmp_path, run_tool):
    error = run_tool(tool, published, tmp_path / 'out.onnx')
    assert error == 'error: a checkpoint ends in .pth or .safetensors, not out.onnx'


def test_published_model_holds_only_ema_weights_and_metadata(ema_weights, run_checkpoint, tmp_path, run_tool):
    assert 'averaged weights' in run_tool('publish_model', run_checkpoint, tmp_path / 'model.pth')
    (out,) = tmp_path.glob('model*')
    assert load(out).keys() == {'meta', 'state_dict'}
    assert load(out)['meta'] == dict(iter=3, dataset_meta=dict(classes=['wall', 'sky']))
    assert_same_weights(load(out)['state_dict'], ema_weights)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_published_name_has_a_hash_that_is_always_the_same(suffix, run_checkpoint, tmp_path, run_tool):
    pytest.importorskip('safetensors')
    for _ in range(3):
        run_tool('publish_model', run_checkpoint, tmp_path / f'revcol_b{suffix}')
    (out,) = tmp_path.glob(f'revcol_b*{suffix}')
    assert out.name == f'revcol_b-{hashlib.sha256(out.read_bytes()).hexdigest()[:8]}{suffix}'
    assert out.stat().st_mode == run_checkpoint.stat().st_mode


def test_published_safetensors_load_as_an_init_cfg(ema_weights, run_checkpoint, tmp_path, run_tool):
    pytest.importorskip('safetensors')
    run_tool('publish_model', run_checkpoint, tmp_path / 'model.safetensors')
    (out,) = tmp_path.glob('model*.safetensors')
    model = RevCol(arch=SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(out)))
    model.init_weights()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, ema_weights[f'backbone.{name}']), name
    assert read_checkpoint(out)['meta']['dataset_meta'] == dict(classes=['wall', 'sky'])


def test_weights_that_share_memory_become_safetensors(tmp_path, run_tool):
    pytest.importorskip('safetensors')
    weights = randomize(Segmentor()).state_dict()
    weights['again'] = weights['decode_head.weight']
    torch.save(weights, tmp_path / 'in.pth')
    run_tool('convert_checkpoint', tmp_path / 'in.pth', tmp_path / 'out.safetensors')
    assert_same_weights(read_checkpoint(tmp_path / 'out.safetensors')['state_dict'], weights)


def test_missing_safetensors_package_is_named(run_checkpoint, tmp_path, run_tool, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    error = run_tool('publish_model', run_checkpoint, tmp_path / 'model.safetensors')
    assert error.startswith('error: ') and error.endswith('pip install safetensors')


def test_safetensors_file_of_another_format_is_an_error(tmp_path, run_tool):
    pytest.importorskip('safetensors')
    torch.save({}, tmp_path / 'in.safetensors')
    error = run_tool('convert_checkpoint', tmp_path / 'in.safetensors', tmp_path / 'out.pth')
    assert 'in.safetensors: no safetensors file' in error
