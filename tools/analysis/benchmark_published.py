"""Time of RevCol as this project computes it, relative to the published code.

    git clone https://github.com/megvii-research/RevCol
    python tools/analysis/benchmark_published.py RevCol tiny base

prints a table of the ratio ours / published: of a forward pass in evaluation, in float32 and bfloat16, and of
a training step that stores everything and one that is reversible. Both models have the same weights, and are
timed in turn, in one process; the median counts. What they compute is compared first.
"""

import argparse
import importlib
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Callable

import torch
from torch import Tensor, nn

from revcol_mm import RevCol
from revcol_mm.analysis.machine import machine
from revcol_mm.apis import pick_device

PUBLISHED = ('tiny', 'small', 'base', 'large', 'xlarge')


class LastLevel(nn.Module):
    """The published model but for its head: the last level, as ours returns it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        model.cls = nn.Identity()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor]:
        (features,), _ = self.model(x)
        return (features,)


def import_published(checkout: Path) -> ModuleType:
    """Import the published ``models/revcol.py``, with stand-ins for timm, yacs and Python's ``imp``.

    Raises:
        FileNotFoundError: If it is not there.
    """
    if not (checkout / 'models/revcol.py').is_file():
        raise FileNotFoundError(
            f'{checkout} is no checkout of megvii-research/RevCol: it has no models/revcol.py'
        )
    layers = ModuleType('timm.models.layers')
    layers.trunc_normal_, layers.DropPath = nn.init.trunc_normal_, nn.Identity  # rates are 0 here
    stubs = {name: ModuleType(name) for name in ('imp', 'timm', 'timm.models', 'models')}
    stubs['models'].__path__ = [str(checkout / 'models')]  # its __init__ wants yacs, too
    sys.modules.update(stubs | {'timm.models.layers': layers})
    return importlib.import_module('models.revcol')


def measure(published: ModuleType, name: str, args: argparse.Namespace) -> dict[str, float]:
    """Ratios of times, ours / published, of one arch."""
    theirs = {
        save_memory: LastLevel(
            getattr(published, f'revcol_{name}')(save_memory, inter_supv=False, drop_path=0.0)
        ).to(args.device)
        for save_memory in (False, True)
    }
    ours = {
        save_memory: RevCol(name, save_memory=save_memory, out_indices=(3,)).to(args.device)
        for save_memory in (False, True)
    }
    weights = ours[False].state_dict()
    for key, value in weights.items():
        if key.endswith('gamma'):
            value.fill_(
                0.3
            )  # as in a trained model; with the initial 1e-6 blocks would not show in what is compared
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

    jobs = {
        'forward': (forward, False),
        'bfloat16 forward': (partial(forward, dtype=torch.bfloat16), False),
        'plain step': (step, False),
        'reversible step': (step, True),
    }
    ratios = {}
    for job, (run, save_memory) in jobs.items():
        of_ours, of_theirs = alternate(
            [partial(run, ours[save_memory]), partial(run, theirs[save_memory])], args.repeats, args.device
        )
        ratios[job] = of_ours / of_theirs
    plain, reversible = alternate(
        [partial(step, ours[kind]) for kind in (False, True)], args.repeats, args.device
    )
    return ratios | {'reversible / plain, ours': reversible / plain}


def alternate(functions: list[Callable[[], None]], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each function, run in turn after two runs that do not count."""
    times = [[] for _ in functions]
    for repeat in range(repeats + 2):
        for function, seconds in zip(functions, times):
            started = time.perf_counter()
            function()
            if device.type == 'cuda':
                torch.cuda.synchronize(device)
            if repeat >= 2:
                seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('checkout', type=Path, help='folder of megvii-research/RevCol')
    parser.add_argument('archs', nargs='+', choices=PUBLISHED, metavar='ARCH', help=', '.join(PUBLISHED))
    parser.add_argument('--size', nargs=2, type=int, default=(224, 224), metavar=('H', 'W'))
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1' [a GPU where there is one]")
    args = parser.parse_args()
    try:
        args.device = pick_device(args.device)
        published = import_published(args.checkout)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print(
        f'{args.batch_size} x 3 x {args.size[0]} x {args.size[1]}, {machine(args.device)}; ours / published\n'
    )
    for index, name in enumerate(args.archs):
        ratios = measure(published, name, args)
        if index == 0:
            print(f'| arch | {" | ".join(ratios)} |\n{"|---" * (1 + len(ratios))}|')
        print(f'| {name} | {" | ".join(f"{ratio:.2f}" for ratio in ratios.values())} |', flush=True)


if __name__ == '__main__':
    main()
