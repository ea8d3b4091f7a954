"""MMCV's SyncBatchNorm against torch's BatchNorm2d."""

import pytest
import torch
import torch.distributed as dist

from .data.make_mmcv_ops import OPS
from .subprocesses import run_in_processes
from .test_mmcv_ops import supplied

pytestmark = supplied


def batch_norm(dtype=torch.float32, device='cpu'):
    """Return an input, a gradient of the output, and BatchNorm2d with random parameters and statistics."""
    x, grad_output = torch.randn(2, 4, 3, 5, 2).to(device, dtype)
    norm = torch.nn.BatchNorm2d(3, momentum=0.3)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return x.requires_grad_(), grad_output, norm.to(device)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])  # MMCV accepts no others
def test_one_process_equals_batch_norm(dtype, device, tmp_path):
    x, grad_output, plain = batch_norm(dtype, device)
    exact = x.detach().double().requires_grad_()
    dist.init_process_group('gloo', init_method=f'file://{tmp_path / "rendezvous"}', rank=0, world_size=1)
    try:
        norm = OPS.SyncBatchNorm(3, momentum=0.3).to(device)
        norm.load_state_dict(plain.state_dict())
        output, expected = norm(x), plain.double()(exact)
        output.backward(grad_output)
        expected.backward(grad_output.double())
        assert output.dtype == x.grad.dtype == dtype
        bound = torch.finfo(dtype).eps * 4
        for result, other in zip(
            [output, x.grad, *norm.buffers(), norm.weight.grad, norm.bias.grad, norm.eval()(x)],
            [expected, exact.grad, *plain.buffers(), plain.weight.grad, plain.bias.grad, plain.eval()(exact)],
            strict=True,
        ):
            torch.testing.assert_close(result.double(), other.double(), rtol=bound, atol=bound)
    finally:
        dist.destroy_process_group()


WORKER = """
import sys
import torch
import torch.distributed as dist
import revcol_mm
from mmcv.ops import SyncBatchNorm
from tests.subprocesses import leave_processes

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
x, grad_output, state = torch.load(f'{folder}/batch.pt')
results = {}
for mode, part in (('default', slice(rank * 2, rank * 2 + 2)), ('N', slice(rank * 4, 4))):
    norm, mine = SyncBatchNorm(3, momentum=0.3, stats_mode=mode), x[part].requires_grad_()
    norm.load_state_dict(state)
    output = norm(mine)
    output.backward(grad_output[part])
    grads = mine.grad, norm.weight.grad, norm.bias.grad
    results[mode] = output.detach(), norm.running_mean, norm.running_var, *grads
torch.save(results, f'{folder}/{rank}.pt')
leave_processes()
"""


def test_two_processes_equal_batch_norm_of_both_batches(tmp_path):
    x, grad_output, plain = batch_norm()
    torch.save((x.detach(), grad_output, plain.state_dict()), tmp_path / 'batch.pt')
    run_in_processes(WORKER, tmp_path)
    results = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    expected = plain(x)
    expected.backward(grad_output)
    statistics = plain.running_mean, plain.running_var
    means_of_processes = plain.weight.grad / 2, plain.bias.grad / 2
    for result, output, grad in zip(results, expected.detach().split(2), x.grad.split(2), strict=True):
        torch.testing.assert_close(result['default'], (output, *statistics, grad, *means_of_processes))
        torch.testing.assert_close(result['N'][1], plain.running_mean)
    # Mode 'N' weighs processes by their number of images; the second process has none.
    torch.testing.assert_close(results[0]['N'][0], expected.detach())
    assert len(results[1]['N'][0]) == 0
