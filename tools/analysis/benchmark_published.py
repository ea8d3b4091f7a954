"""Compare the speed of RevCol in this project with that of the published code.

    git clone https://github.com/megvii-research/RevCol
    python tools/analysis/benchmark_published.py RevCol tiny base

prints a table of the ratios of times, ours / published: of forward passes in evaluation, in float32 and
bfloat16, and of training steps that store all activations or are reversible. Both models have the same
weights, and their outputs are compared first. They are timed in turn in one process; medians are compared.
"""

import argparse
import importlib
import statistics
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from revcol_mm import RevCol
from revcol_mm.analysis.command_line import add_device_argument
from revcol_mm.analysis.machine import machine
from revcol_mm.analysis.speed import time_in_turn
from revcol_mm.apis import pick_device
from revcol_mm.errors import errors_in_one_line
from revcol_mm.markdown_table import markdown_table

PUBLISHED = ('tiny', 'small', 'base', 'large', 'xlarge')


class LastLevel(nn.Module):
    """The published model without its head, so that it returns the last level."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        model.cls = nn.Identity()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor]:
        (features,), _ = self.model(x)
        return (features,)


def import_published(checkout: Path) -> ModuleType:
    """Import the published ``models/revcol.py``, with stubs for timm, yacs and Python's ``imp``.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    if not (checkout / 'models/revcol.py').is_file():
        raise FileNotFoundError(
            f'{checkout} is no checkout of megvii-research/RevCol: it has no models/revcol.py'
        )
    layers = ModuleType('timm.models.layers')
    layers.trunc_normal_, layers.DropPath = nn.init.trunc_normal_, nn.Identity  # drop path rates are 0 here
    stubs = {name: ModuleType(name) for name in ('imp', 'timm', 'timm.models', 'models')}
    stubs['models'].__path__ = [str(checkout / 'models')]  # skips its __init__, which imports yacs
    sys.modules.update(stubs | {'timm.models.layers': layers})
    return importlib.import_module('models.revcol')


def measure(published: ModuleType, name: str, args: argparse.Namespace) -> dict[str, float]:
    """Return the ratios of times, ours / published, of one arch."""
    build = getattr(published, f'revcol_{name}')
    theirs = {
        save_memory: LastLevel(build(save_memory, inter_supv=False, drop_path=0.0)).to(args.device)
        for save_memory in (False, True)
    }
    ours = {
        save_memory: RevCol(name, save_memory=save_memory, out_indices=(3,)).to(args.device)
        for save_memory in (False, True)
    }
    weights = ours[False].state_dict()
    for key, value in weights.items():
        if key.endswith('gamma'):
            value.fill_(0.3)  # as in a trained model; the initial 1e-6 would hide differences in the blocks
    ours[True].load_state_dict(weights)
    for model in theirs.values():
        model.model.load_state_dict(weights)
    image = torch.randn(args.batch_size, 3, *args.size, device=args.device)
    with torch.no_grad():
        (actual,), (expected,) = ours[False].eval()(image), theirs[False].eval()(image)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())

    def forward(model: nn.Module, dtype: torch.dtype | None = None) -> None:
        with torch.no_grad(), torch.autocast(image.device.type, dtype, enabled=dtype is not None):
            model.eval()(image)

    def step(model: nn.Module) -> None:
        model.train().zero_grad()
        model(image)[0].square().mean().backward()

    def ratio(first: partial, second: partial) -> float:
        times = time_in_turn(dict(first=first, second=second), args.repeats, args.device, warm_up=1)
        return statistics.median(times['first']) / statistics.median(times['second'])

    bfloat16 = partial(forward, dtype=torch.bfloat16)
    return {
        'forward': ratio(partial(forward, ours[False]), partial(forward, theirs[False])),
        'bfloat16 forward': ratio(partial(bfloat16, ours[False]), partial(bfloat16, theirs[False])),
        'plain step': ratio(partial(step, ours[False]), partial(step, theirs[False])),
        'reversible step': ratio(partial(step, ours[True]), partial(step, theirs[True])),
        'reversible / plain, ours': ratio(partial(step, ours[True]), partial(step, ours[False])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('checkout', type=Path, help='folder of megvii-research/RevCol')
    parser.add_argument('archs', nargs='+', choices=PUBLISHED, metavar='ARCH', help=', '.join(PUBLISHED))
    parser.add_argument('--size', nargs=2, type=int, default=(224, 224), metavar=('H', 'W'))
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--repeats', type=int, default=7)
    add_device_argument(parser)
    args = parser.parse_args()
    with errors_in_one_line():
        args.device = pick_device(args.device)
        published = import_published(args.checkout)
    print(
        f'{args.batch_size} x 3 x {args.size[0]} x {args.size[1]}, {machine(args.device)}; ours / published\n'
    )
    for index, name in enumerate(args.archs):
        ratios = measure(published, name, args)
        row = [name, *(f'{ratio:.2f}' for ratio in ratios.values())]
        lines = markdown_table(['arch', *ratios], [row]).splitlines()
        print('\n'.join(lines if index == 0 else lines[2:]), flush=True)


if __name__ == '__main__':
    main()
