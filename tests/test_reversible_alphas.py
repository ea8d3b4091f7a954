"""How often the CPU reads the alphas of a reversible model, which makes it wait for a GPU."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from revcol_mm.models.layers.column import as_links
from revcol_mm.ops import ReversibleChain, exact_couplings

from .test_reversible import IMAGE, pair
from .toy_chains import Conv, chain_of, loss_of


def freeze_alphas(model):
    for name, param in model.named_parameters():
        if 'alpha' in name:
            param.requires_grad_(False)


def evaluate_columns(model):
    for column in model.columns[1:]:
        column.eval()


def shard_columns(model, number=1):
    """Shard as FullyShardedRunner does with so many processes."""
    mesh = init_device_mesh('cpu', (number,))
    for part in (*model.columns, model):
        fully_shard(part, mesh=mesh)


@pytest.mark.usefixtures('process_group')
@pytest.mark.parametrize('change', [lambda model: None, freeze_alphas, evaluate_columns, shard_columns])
def test_alphas_are_read_once_per_step(change, monkeypatch):
    _, model = pair('spread')
    change(model)
    reads, plan = [], exact_couplings.plan_codes
    monkeypatch.setattr(
        exact_couplings, 'plan_codes', lambda alphas: reads.append(len(alphas)) or plan(alphas)
    )
    for _ in range(2):
        sum(feature.mean() for feature in model(torch.rand(IMAGE))).backward()
    assert reads == [16, 16]


@pytest.fixture
def main_of_four_processes():
    """The other processes do not exist; collectives do nothing."""
    torch.distributed.init_process_group('fake', rank=0, world_size=4, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures('main_of_four_processes')
def test_sharded_alphas_are_gathered_in_one_transfer():
    """The main process holds them all: they are sharded in a dimension of size 1."""
    _, model = pair('spread')
    expected = [alpha.detach().clone() for column in model.columns for alpha in column.alphas]
    shard_columns(model, number=4)
    with CommDebugMode() as transfers:
        links = as_links(model.columns)
    assert transfers.get_total_counts() == 1
    assert all(map(torch.equal, (coupling.alpha for link in links for coupling in link), expected))


@pytest.mark.usefixtures('process_group')
def test_models_of_which_some_columns_are_sharded_train():
    plain, model = pair('spread')
    fully_shard(model.subnet1, mesh=init_device_mesh('cpu', (1,)))
    image = torch.randn(IMAGE)
    for each in (plain, model):
        sum(feature.square().mean() for feature in each(image)).backward()
    torch.testing.assert_close(model.subnet0.alpha0.grad, plain.subnet0.alpha0.grad)


def test_a_chain_may_get_other_links_than_announced():
    """It then reads the alphas of each link."""
    links, x, start = chain_of([Conv() for _ in range(6)])
    others, _, _ = chain_of([Conv() for _ in range(6)], alpha_shape=(1, 4, 1, 1))
    losses = [loss_of(ReversibleChain(announced), links, x, start) for announced in (links, others, ())]
    losses[1].backward()
    assert losses[0] == losses[1] == losses[2]
