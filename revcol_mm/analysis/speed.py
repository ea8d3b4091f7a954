"""Timing of training and inference steps of a model in several variants."""

import copy
import time
from typing import Any, Callable, NamedTuple, TypeVar

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper

MAX_GRAPHS = 64  # compiled graphs per function
DTYPES = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)
Name = TypeVar('Name')


class Variant(NamedTuple):
    """One way to run a model.

    Args:
        mode: 'training' or 'inference'.
        precision: 'fp32', 'bf16' or 'fp16', the precision of autocast.
        compiled: Whether torch.compile compiles the model's ``forward``, including its heads.
        batch_size: Number of images in a batch.
    """

    mode: str
    precision: str
    compiled: bool
    batch_size: int


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return autocast for a precision; it is disabled for precisions that need none."""
    dtype = DTYPES.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


class Stepper:
    """Makes training and inference steps of a model in any variant without changing its weights.

    A training step is the model's own ``train_step``: data preprocessor, loss, backward, gradient clipping
    and the config's optimizer. The learning rate is 0, which costs the same. An inference step is the
    model's ``test_step``, including post-processing. ``make_batch`` returns a batch of the given size.
    """

    def __init__(self, model: BaseModel, cfg: Config, make_batch: Callable[[int], dict[str, Any]]) -> None:
        self.model, self.make_batch = model, make_batch
        self.device = next(model.parameters()).device
        wrapper_cfg = copy.deepcopy(cfg.optim_wrapper)
        for key in ('dtype', 'loss_scale', 'use_fsdp', 'accumulative_counts'):
            wrapper_cfg.pop(key, None)
        wrapper_cfg['type'] = 'OptimWrapper'
        self.optimizer = build_optim_wrapper(model, wrapper_cfg).optimizer
        for group in self.optimizer.param_groups:
            group['lr'] = 0.0
        self.wrapper_args = dict(optimizer=self.optimizer, clip_grad=wrapper_cfg.get('clip_grad'))
        self.eager_forward = model.forward

    def step(self, variant: Variant) -> Callable[[], Any]:
        """Return a function that makes one step."""
        model = self.model
        batch = self.make_batch(variant.batch_size)
        forward = self.eager_forward
        if variant.compiled:
            # Every variant needs its own graph. Above the limit torch would silently run in eager mode.
            limit = torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS, fail_on_recompile_limit_hit=True)
            forward = limit(torch.compile(forward, dynamic=False))
        # Autocast is applied here because AmpOptimWrapper, which scales the loss for fp16, requires a GPU.
        forward = autocast(self.device, variant.precision)(forward)
        wrapper_type = AmpOptimWrapper if variant.precision == 'fp16' else OptimWrapper
        wrapper = wrapper_type(**self.wrapper_args)

        def make_step() -> Any:
            model.train(variant.mode == 'training')
            model.forward = forward
            try:
                if model.training:
                    return model.train_step(copy.copy(batch), wrapper)
                with torch.no_grad():
                    return model.test_step(copy.copy(batch))
            finally:
                del model.forward  # the class's is used again

        return make_step


def time_in_turn(
    steps: dict[Name, Callable[[], Any]], repeats: int, device: torch.device, warm_up: int = 0
) -> dict[Name, list[float]]:
    """Time several functions in turn, so that a machine that slows down slows all of them.

    Args:
        steps: Functions by name.
        repeats: Number of timed calls of each function.
        device: A GPU is synchronized before and after every timed call.
        warm_up: Number of untimed calls of the same function before every timed call.

    Returns:
        Seconds of every timed call.
    """
    seconds = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            for _ in range(warm_up):
                step()
            started = _now(device)
            step()
            seconds[name].append(_now(device) - started)
    return seconds


def _now(device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()
