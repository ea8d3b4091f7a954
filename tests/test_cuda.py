"""Tests of what only a GPU has: fast kernels, its allocator, Inductor's compiler, NCCL.

Tests that run on both a CPU and a GPU are in the other files and use the fixture ``device``.
"""

import copy
import json

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from revcol_mm.ops import ReversibleChain, call, check_reconstruction
from revcol_mm.testing import count_launches, gradients, worst_errors
from revcol_mm.training.column_statistics import peak_memory

from .conftest import CUDA
from .subprocesses import run
from .test_reversible import compare, output_weights, pair
from .test_tools import on
from .toy_chains import Conv, chain_of, linear_chain, loss_of

pytestmark = pytest.mark.parametrize('device', [CUDA], indirect=True)
AUTOCAST = [None, torch.bfloat16, torch.float16]


@pytest.fixture
def fast(device, monkeypatch):
    """Enable TF32, nondeterministic kernels and cuDNN's benchmark."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', False)
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    torch.set_float32_matmul_precision('high')
    yield device
    torch.set_float32_matmul_precision('highest')


@pytest.mark.parametrize('benchmark', [False, True])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', AUTOCAST)
def test_fast_kernels_and_changing_sizes_are_reconstructed_exactly(
    dtype, layout, benchmark, fast, monkeypatch
):
    """Outputs are bitwise those of the plain model, unless the benchmark chose other kernels for it."""
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', benchmark)
    plain, reversible = pair('spread', num_columns=16, drop_path_rate=0.3, device=fast)
    sizes = [(64, 96), (33, 47), (130, 70), (64, 96), (95, 127)]
    for size in sizes:
        image = torch.randn(3, 3, *size, device=fast).contiguous(memory_format=layout)
        outputs = []
        for model in (plain, reversible):
            torch.manual_seed(0)
            with torch.autocast(fast.type, dtype, enabled=dtype is not None):
                outputs.append(model(image))
        for expected, actual in zip(*outputs, strict=True):
            assert benchmark or torch.equal(actual, expected)
        sum(output.square().mean() for output in outputs[1]).backward()
        check_reconstruction()


@pytest.mark.parametrize('dtype', AUTOCAST)
def test_gradients_with_fast_kernels_are_as_accurate_as_those_of_plain_training(dtype, fast, monkeypatch):
    """On average over images: on a single image either may be twice as accurate."""
    monkeypatch.setattr(
        torch.backends.cudnn, 'benchmark', False
    )  # may choose other kernels for the plain model
    models = pair('spread', num_columns=16, device=fast)
    totals = [0.0, 0.0]
    for seed in range(5):
        torch.manual_seed(seed)
        image = torch.randn(2, 3, 64, 96, device=fast)
        weights = output_weights(models[0], image)
        truth = gradients(copy.deepcopy(models[0]).double(), image.double(), [w.double() for w in weights])
        for index, model in enumerate(models):
            with torch.autocast(fast.type, dtype, enabled=dtype is not None):
                totals[index] += worst_errors(gradients(model, image, weights), truth)[0][0]
    of_plain, of_reversible = totals
    assert of_reversible <= 1.5 * of_plain


def test_a_compiled_model_trains_reversibly(device, monkeypatch):
    """Inductor compiles the levels, and the model around the columns."""
    plain, reversible = pair('spread', device=device)
    compiled, num_calls = call._compiled(), []
    monkeypatch.setattr(call, '_compiled', lambda: lambda *args: num_calls.append(1) or compiled(*args))
    reversible.compile()
    compare(plain, reversible, torch.randn(2, 3, 64, 96, device=device), tolerance=2e-5)
    check_reconstruction()
    assert len(num_calls) == 2 * 16


@pytest.mark.parametrize('is_frozen', [False, True])
def test_an_inexact_reconstruction_gives_nan_gradients_and_an_error_in_a_chain_on_another_device(
    is_frozen, device
):
    links, x, start = chain_of([Conv() for _ in range(4)], device=device)
    coupling = links[1][1]
    params = [coupling.alpha, *coupling.function.parameters()]
    for param in params:
        param.requires_grad_(not is_frozen)
    loss = loss_of(ReversibleChain(links), links, x.requires_grad_(), start)
    handle = coupling.function.register_forward_hook(lambda m, i, output: output * (1 + 1e-6))
    loss.backward()
    handle.remove()
    assert all(tensor.grad.isnan().all() for tensor in (x, *(() if is_frozen else params)))
    links, x, start = chain_of([Conv() for _ in range(4)])
    with pytest.raises(RuntimeError, match='not exact in link 1, level 1'):
        loss_of(ReversibleChain(links), links, x, start)
    check_reconstruction()  # the error is raised once


def test_switching_tf32_before_backward_is_named_in_the_error(device):
    links, x, start = linear_chain(2, size=256, device=device)
    loss = loss_of(ReversibleChain(links), links, x, start)
    torch.set_float32_matmul_precision('high')
    try:
        loss.backward()
        with pytest.raises(RuntimeError, match='settings were changed .*cuda.matmul.fp32_precision'):
            check_reconstruction()
    finally:
        torch.set_float32_matmul_precision('highest')


def test_a_reversible_step_waits_for_the_gpu_at_most_once(device):
    """To read the alphas, which determine the sizes of codes."""
    _, model = pair('spread', num_columns=16, device=device)
    image = torch.randn(2, 3, 64, 96, device=device)

    def step():
        sum(feature.mean() for feature in model(image)).backward()

    step()  # compiles the kernels
    torch.cuda.synchronize()
    assert count_launches(step).waits <= 1


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_memory_hardly_grows_with_columns_and_is_below_checkpointing(precision, device, tmp_path):
    run(
        *('tools/analysis/benchmark_reversible.py', 'tiny', '--num-columns', 4, 16, '--size', 256, 256),
        *('--batch-size', 2, '--precision', precision, '--repeats', 1, '--device', device, '--out', tmp_path),
    )
    rows = json.loads((tmp_path / 'benchmark_reversible.json').read_text())['rows']
    few, many = ({mode: result['activation_mib'] for mode, result in row['modes'].items()} for row in rows)
    for memory in (few, many):
        assert memory['plain'] > memory['checkpoint per column'] > memory['reversible'] > 0
    assert many['reversible'] <= 1.1 * few['reversible']
    assert many['checkpoint per column'] >= 1.2 * few['checkpoint per column']
    assert many['reversible'] <= 0.1 * many['plain']


def test_the_logged_memory_is_that_of_the_allocator(device):
    assert peak_memory(device) == {'cuda': pytest.approx(torch.cuda.max_memory_allocated() / 2**20)}


@pytest.fixture
def group(device, tmp_path):
    """A process group with this process only."""
    dist.init_process_group('nccl', f'file://{tmp_path}/rendezvous', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('kind', ['ddp', 'fully_shard'])
def test_gradients_of_a_wrapped_model_are_those_of_the_plain_model(kind, group, device):
    plain, reversible = pair('spread', device=device)
    image = torch.randn(2, 3, 64, 96, device=device)
    if kind == 'ddp':
        reversible = DistributedDataParallel(reversible)
    else:
        mesh = init_device_mesh(device.type, (1,))
        for part in (*reversible.columns, reversible):
            fully_shard(part, mesh=mesh)
    for model in (plain, reversible):
        sum(feature.square().mean() for feature in model(image)).backward()
    expected = {name: param.grad for name, param in plain.named_parameters()}
    actual = {name.removeprefix('module.'): param.grad for name, param in reversible.named_parameters()}
    actual = {name: getattr(grad, 'full_tensor', lambda grad=grad: grad)() for name, grad in actual.items()}
    (error, name), *_ = worst_errors(actual, expected)
    assert error <= 2e-5, name


def test_deterministic_training_warns_of_nondeterministic_kernels_and_continues(
    device, sample_data, tmp_path
):
    options = on(sample_data, 'ade20k', 'model.backbone.save_memory=True')
    config = 'configs/upernet_revcol_nano_sample.py'
    printed = run(
        'tools/train.py', config, '--work-dir', tmp_path, '--seed', 0, '--deterministic', '--amp', *options
    )
    assert 'mIoU' in printed and 'without mixed precision' not in printed
    assert 'does not have a deterministic implementation' in printed
