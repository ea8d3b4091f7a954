"""tools/convert_checkpoint.py and tools/publish_model.py: what they write, and that it is safe and whole."""

import hashlib
import re
import runpy
import sys

import pytest
import torch

from revcol_mm import RevCol
from revcol_mm.checkpoints.fitting import load_backbone
from revcol_mm.checkpoints.reading import read_checkpoint

from .subprocesses import REPO
from .test_checkpoint import SMALL, RunsCode, Segmentor, randomize, save_mmcv1, save_published


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Run a tool's command line in this process; return what it prints, or its error."""

    def run(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        try:
            runpy.run_path(str(REPO / f'tools/{tool}.py'), run_name='__main__')
        except SystemExit as exit:
            return str(exit)
        return capsys.readouterr().out

    return run


@pytest.fixture
def backbone():
    return randomize(RevCol(arch=SMALL))


@pytest.fixture
def heads():
    return {'cls.classifier.1.weight': torch.rand(10, 32), 'cls.classifier.1.bias': torch.rand(10)}


@pytest.fixture
def published(backbone, heads, tmp_path):
    """A published classification checkpoint with averaged weights, 1 above the others."""
    weights = {**backbone.state_dict(), **heads}
    ema = {name: weight + 1 for name, weight in weights.items()}
    return save_published(tmp_path / 'published.pth', weights, state_dict_ema=ema, optimizer={'state': {}})


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name


def prefixed(weights):
    return {f'backbone.{name}': weight for name, weight in weights.items()}


def test_a_published_classification_checkpoint_becomes_ours_and_back(
    backbone, heads, published, tmp_path, run_tool
):
    ours, again = tmp_path / 'new/ours.pth', tmp_path / 'again.pth'
    assert 'ours.pth: 122 weights' in run_tool('convert_checkpoint', published, ours)
    assert load(ours).keys() == {'meta', 'state_dict'}
    assert_same(load(ours)['state_dict'], {**prefixed(backbone.state_dict()), **heads})
    run_tool('convert_checkpoint', ours, again, '--to', 'published')
    assert_same(load(again)['model'], {**backbone.state_dict(), **heads})


def test_a_segmentation_checkpoint_keeps_names_and_classes_both_ways(tmp_path, run_tool):
    source = save_mmcv1(tmp_path / 'mmcv1.pth', randomize(Segmentor()))
    for layout in ('revcol_mm', 'published'):
        run_tool('convert_checkpoint', source, tmp_path / 'out.pth', '--to', layout)
        assert load(tmp_path / 'out.pth').keys() == {'meta', 'state_dict'}
        assert load(tmp_path / 'out.pth')['meta']['CLASSES'] == ['wall', 'sky']
        assert_same(load(tmp_path / 'out.pth')['state_dict'], load(source)['state_dict'])


def test_heads_are_dropped_on_request(backbone, published, tmp_path, run_tool):
    run_tool('convert_checkpoint', published, tmp_path / 'out.pth', '--drop-heads')
    assert_same(load(tmp_path / 'out.pth')['state_dict'], prefixed(backbone.state_dict()))
    segmentor = save_mmcv1(tmp_path / 'mmcv1.pth', Segmentor())
    run_tool('convert_checkpoint', segmentor, tmp_path / 'out.pth', '--drop-heads', '--to', 'published')
    assert load(tmp_path / 'out.pth')['model'].keys() == backbone.state_dict().keys()


def test_averaged_weights_are_taken_on_request(backbone, heads, published, tmp_path, run_tool):
    run_tool('convert_checkpoint', published, tmp_path / 'out.pth', '--ema', '--to', 'published')
    averaged = {name: weight + 1 for name, weight in {**backbone.state_dict(), **heads}.items()}
    assert_same(load(tmp_path / 'out.pth')['model'], averaged)


def test_averaged_weights_of_mmengine_are_those_of_the_model_s_state(tmp_path, run_tool):
    """Its EMAHook swaps the two when it saves."""
    averaged, trained = randomize(Segmentor()).state_dict(), randomize(Segmentor()).state_dict()
    trained = {f'module.{name}': weight for name, weight in trained.items()}
    source = tmp_path / 'iter_3.pth'
    torch.save(dict(meta={}, state_dict=averaged, ema_state_dict=trained), source)
    run_tool('convert_checkpoint', source, tmp_path / 'out.pth', '--ema')
    assert_same(load(tmp_path / 'out.pth')['state_dict'], averaged)


def test_averaged_weights_that_are_not_there_are_an_error(tmp_path, run_tool):
    source = save_published(tmp_path / 'published.pth', RevCol(arch=SMALL).state_dict(), state_dict_ema=None)
    error = run_tool('convert_checkpoint', source, tmp_path / 'out.pth', '--ema')
    assert error.startswith('error: no averaged weights') and not (tmp_path / 'out.pth').exists()


def test_padded_kernels_are_a_7x7_model_that_computes_the_same(backbone, published, tmp_path, run_tool):
    run_tool('convert_checkpoint', published, tmp_path / 'out.pth', '--pad-kernel', 7)
    padded = RevCol(arch=SMALL, kernel_size=7)
    assert load_backbone(padded, tmp_path / 'out.pth').padded == []
    image = torch.rand(1, 3, 64, 64)
    for feature, expected in zip(padded.eval()(image), backbone.eval()(image)):
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size', [1, 4])
def test_a_kernel_size_that_padding_cannot_give_is_an_error(size, published, tmp_path, run_tool):
    error = run_tool('convert_checkpoint', published, tmp_path / 'out.pth', '--pad-kernel', size)
    assert error == f'error: cannot zero-pad a kernel from size 3 to {size}'


@pytest.mark.parametrize('tool', ['convert_checkpoint', 'publish_model'])
def test_code_that_is_pickled_in_a_checkpoint_neither_runs_nor_is_passed_on(tool, tmp_path, run_tool):
    marker, source = tmp_path / 'it_ran', tmp_path / 'malicious.pth'
    code = RunsCode(exec, f'open({str(marker)!r}, "w")')
    meta = dict(epoch=3, hook_msgs=code, CLASSES=('wall', code))
    torch.save(dict(meta=meta, state_dict=Segmentor().state_dict(), config=code), source)
    run_tool(tool, source, tmp_path / 'out.pth')
    assert not marker.exists()
    (out,) = tmp_path.glob('out*.pth')
    assert load(out)['meta'] == dict(epoch=3, hook_msgs=None, CLASSES=['wall', None])


@pytest.mark.parametrize('name', ['published.pth', 'link.pth'])
def test_the_input_is_not_overwritten(name, published, tmp_path, run_tool):
    (tmp_path / 'link.pth').symlink_to(published)
    before = published.read_bytes()
    assert run_tool('convert_checkpoint', published, tmp_path / name).startswith('error: OUT is IN')
    assert published.read_bytes() == before


def test_a_failure_leaves_what_was_there(published, tmp_path, run_tool, monkeypatch):
    def fill_the_disk(checkpoint, file):
        file.write(b'half a checkpoint')
        raise OSError('No space left on device')

    (tmp_path / 'out.pth').write_text('from before')
    monkeypatch.setattr(torch, 'save', fill_the_disk)
    assert run_tool('convert_checkpoint', published, tmp_path / 'out.pth') == 'error: No space left on device'
    assert {path.name for path in tmp_path.iterdir()} == {'out.pth', 'published.pth'}
    assert (tmp_path / 'out.pth').read_text() == 'from before'


@pytest.mark.parametrize(
    'content, message',
    [
        (None, 'no checkpoint .*in.pth; published weights are at https://[^ ]*$'),
        ({'epoch': 3}, "no weights .*'epoch'"),
        ([1, 2], 'cannot read .*in.pth: it holds a list, not a dict'),
        ({'conv1.weight': torch.zeros(1)}, r"no weights of a backbone .*\['conv1.weight'\]"),
    ],
)
def test_an_input_that_is_no_checkpoint_is_an_error_that_says_so(content, message, tmp_path, run_tool):
    if content is not None:
        torch.save(content, tmp_path / 'in.pth')
    assert re.match(
        f'error: {message}', run_tool('convert_checkpoint', tmp_path / 'in.pth', tmp_path / 'out.pth')
    )


@pytest.mark.parametrize('tool', ['convert_checkpoint', 'publish_model'])
def test_an_output_of_another_format_is_an_error_that_names_both(tool, published, tmp_path, run_tool):
    error = run_tool(tool, published, tmp_path / 'out.onnx')
    assert error == 'error: a checkpoint ends in .pth or .safetensors, not out.onnx'


@pytest.fixture
def run_checkpoint(tmp_path):
    """A checkpoint as MMEngine writes it in training, and the averaged weights in it."""
    averaged = randomize(Segmentor()).state_dict()
    path = tmp_path / 'iter_3.pth'
    checkpoint = dict(
        meta=dict(iter=3, dataset_meta=dict(classes=('wall', 'sky'))),
        state_dict=averaged,
        ema_state_dict={f'module.{name}': weight + 1 for name, weight in averaged.items()},
        optimizer=dict(state={0: dict(exp_avg=torch.rand(3))}),
        message_hub=dict(log_scalars={}),
        param_schedulers=[dict(last_step=3)],
    )
    torch.save(checkpoint, path)
    return path, averaged


def test_publishing_keeps_the_averaged_weights_and_meta_alone(run_checkpoint, tmp_path, run_tool):
    source, averaged = run_checkpoint
    assert 'averaged weights' in run_tool('publish_model', source, tmp_path / 'model.pth')
    (out,) = tmp_path.glob('model*')
    assert load(out).keys() == {'meta', 'state_dict'}
    assert load(out)['meta'] == dict(iter=3, dataset_meta=dict(classes=['wall', 'sky']))
    assert_same(load(out)['state_dict'], averaged)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_publishing_writes_the_hash_into_the_name_always_the_same(suffix, run_checkpoint, tmp_path, run_tool):
    pytest.importorskip('safetensors')
    for _ in range(3):
        run_tool('publish_model', run_checkpoint[0], tmp_path / f'revcol_b{suffix}')
    (out,) = tmp_path.glob(f'revcol_b*{suffix}')
    assert out.name == f'revcol_b-{hashlib.sha256(out.read_bytes()).hexdigest()[:8]}{suffix}'
    assert out.stat().st_mode == run_checkpoint[0].stat().st_mode


def test_published_safetensors_load_as_an_init_cfg(run_checkpoint, tmp_path, run_tool):
    pytest.importorskip('safetensors')
    source, averaged = run_checkpoint
    run_tool('publish_model', source, tmp_path / 'model.safetensors')
    (out,) = tmp_path.glob('model*.safetensors')
    model = RevCol(arch=SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(out)))
    model.init_weights()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, averaged[f'backbone.{name}']), name
    assert read_checkpoint(out)['meta']['dataset_meta'] == dict(classes=['wall', 'sky'])


def test_weights_that_share_memory_become_safetensors(tmp_path, run_tool):
    pytest.importorskip('safetensors')
    weights = randomize(Segmentor()).state_dict()
    weights['again'] = weights['decode_head.weight']
    torch.save(weights, tmp_path / 'in.pth')
    run_tool('convert_checkpoint', tmp_path / 'in.pth', tmp_path / 'out.safetensors')
    assert_same(read_checkpoint(tmp_path / 'out.safetensors')['state_dict'], weights)


def test_without_safetensors_the_error_says_how_to_install_it(
    run_checkpoint, tmp_path, run_tool, monkeypatch
):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    error = run_tool('publish_model', run_checkpoint[0], tmp_path / 'model.safetensors')
    assert error.startswith('error: ') and error.endswith('pip install safetensors')


def test_a_file_that_is_only_named_safetensors_is_an_error(tmp_path, run_tool):
    pytest.importorskip('safetensors')
    torch.save({}, tmp_path / 'in.safetensors')
    error = run_tool('convert_checkpoint', tmp_path / 'in.safetensors', tmp_path / 'out.pth')
    assert 'in.safetensors: no safetensors file' in error
