"""Memory of reversible training."""

import gc
import weakref

import pytest
import torch

from revcol_mm import RevCol
from revcol_mm.ops import ReversibleChain
from revcol_mm.testing import peak_bytes

from .test_reversible import IMAGE, pair

NARROW_TINY = dict(channels=(8, 16, 32, 64), layers=(2, 2, 4, 2))  # RevCol-T with an eighth of its channels


def activation_bytes(num_columns, save_memory, image):
    model = RevCol(arch=dict(NARROW_TINY, num_columns=num_columns), save_memory=save_memory).to(image.device)

    def step():
        sum(f.mean() for f in model(image)).backward()

    step()  # allocates gradients, and workspaces on a GPU
    return peak_bytes(step, image.device)


def test_memory_hardly_grows_with_columns(device):
    size = 256 if device.type == 'cpu' else 512  # a GPU's allocator rounds checksums of 8 bytes up to 512
    image = torch.rand(1, 3, size, size, device=device)
    few, many = (activation_bytes(n, save_memory=True, image=image) for n in (4, 32))
    assert many <= 1.1 * few
    assert many <= 0.1 * activation_bytes(32, save_memory=False, image=image)


@pytest.mark.parametrize('training', [True, False])
def test_autocast_does_not_keep_casts_of_weights(training, device):
    model = RevCol(arch='tiny', save_memory=True).to(device).train(training)
    image = torch.rand(1, 3, 32, 32, device=device)

    def forward():
        with torch.set_grad_enabled(training), torch.autocast(device.type, torch.bfloat16):
            model(image)

    num_weights = sum(param.numel() for param in model.parameters() if param.ndim > 1)
    forward()
    assert peak_bytes(forward, device) <= 0.2 * 2 * num_weights


def test_training_steps_leave_no_tensor_behind(device):
    _, model = pair(device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    num_alive = []
    for num_steps in 2, 20:
        for _ in range(num_steps):
            optimizer.zero_grad()
            sum(f.mean() for f in model(torch.randn(1, 3, 32, 32, device=device))).backward()
            optimizer.step()
        num_alive.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    assert num_alive[1] <= num_alive[0]


def test_the_chain_is_freed_after_backward():
    chains = []

    def remember(*args):
        chain = ReversibleChain(*args)
        chains.append(weakref.ref(chain))
        return chain

    _, model = pair()
    model.chain_type = remember
    sum(f.mean() for f in model(torch.randn(IMAGE))).backward()
    assert [chain() for chain in chains] == [None]
