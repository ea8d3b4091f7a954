"""Reversible training on two processes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from revcol_mm import RevCol
from revcol_mm.testing import worst_errors

from .subprocesses import run

ARCH = dict(channels=(8, 16, 24, 32), layers=(1, 1, 2, 1), num_columns=4)

WORKER = """
import sys
import torch
import torch.distributed as dist
from revcol_mm import RevCol
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

rank, kind, rendezvous, arch, weights, out = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group('gloo', init_method=f'file://{rendezvous}', rank=rank, world_size=2)
model = RevCol(arch=eval(arch), save_memory=True)
model.load_state_dict(torch.load(weights))
if kind == 'ddp':
    model = DistributedDataParallel(model)
elif kind == 'fsdp1':
    model = FullyShardedDataParallel(model, device_id=torch.device('cpu'))
else:
    mesh = dist.init_device_mesh('cpu', (2,))
    for column in model.columns:
        for part in {'columns': [column], 'levels': [column.level0, column.level1]}.get(kind, []):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def backward(index):
    sum(f.square().mean() for f in model(images[index : index + 1])).backward()


if kind == 'ddp':
    with model.no_sync():  # gradients of the first image of each process are accumulated
        backward(rank)
else:
    backward(rank)
backward(rank + 2)
grads = {name.removeprefix('module.'): param.grad for name, param in model.named_parameters()}
grads = {name: grad.full_tensor() if hasattr(grad, 'full_tensor') else grad for name, grad in grads.items()}
if rank == 0:
    torch.save(grads, out)
dist.destroy_process_group()
"""


def work(kind, folder, expect=0):
    """Run two processes on two images each; return the gradients, those of one process, and what was said."""
    torch.manual_seed(0)
    plain = RevCol(arch=ARCH, layer_scale_init_value=0.3)
    torch.save(plain.state_dict(), folder / 'weights.pth')
    args = [kind, folder / 'rendezvous', ARCH, folder / 'weights.pth', folder / 'out.pth']
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda rank: run('-c', WORKER, rank, *args, expect=expect), range(2)))
    if expect:
        return said
    for image in torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).split(1):
        (sum(f.square().mean() for f in plain(image)) / 2).backward()
    return torch.load(folder / 'out.pth'), {n: p.grad for n, p in plain.named_parameters()}


def test_ddp_gives_the_gradients_of_one_process_without_find_unused_parameters(tmp_path):
    assert worst_errors(*work('ddp', tmp_path))[0][0] <= 2e-5


@pytest.mark.parametrize('unit', ['model', 'columns'])
def test_fully_sharding_the_model_or_columns_gives_the_gradients_of_one_process(unit, tmp_path):
    assert worst_errors(*work(unit, tmp_path))[0][0] <= 2e-5


@pytest.mark.parametrize('kind', ['fsdp1', 'levels'])
def test_shards_that_would_lose_gradients_are_refused(kind, tmp_path):
    assert all('fully_shard on whole columns or the whole model' in said for said in work(kind, tmp_path, 1))
