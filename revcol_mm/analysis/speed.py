"""Timing of training and inference steps of one model in several variants, in turn."""

import copy
from contextlib import contextmanager, nullcontext
from typing import Any, Callable, Iterator, NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from torch.utils.benchmark import Measurement, Timer

MAX_GRAPHS = 64  # of a function
DTYPES = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)


class Variant(NamedTuple):
    """One way to run a model.

    Args:
        mode: 'training' or 'inference'.
        precision: 'fp32', 'bf16' or 'fp16': what autocast computes in.
        compiled: Whether torch.compile compiles the model's ``forward``, heads and all.
        batch_size: Images in a batch.
    """

    mode: str
    precision: str
    compiled: bool
    batch_size: int

    def __str__(self) -> str:
        how = 'compiled' if self.compiled else 'eager'
        return f'{self.mode}, {self.precision}, {how}, batch {self.batch_size}'


class AutocastOptimWrapper(OptimWrapper):
    """OptimWrapper whose losses are computed under autocast, on a CPU too, without scaling.

    Args:
        device_type: 'cpu' or 'cuda'.
        dtype: One that needs no loss scaling. None: no autocast.
    """

    def __init__(self, device_type: str, dtype: torch.dtype | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.autocast = lambda: autocast(device_type, dtype)

    @contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        with super().optim_context(model), self.autocast():
            yield


def autocast(device_type: str, dtype: torch.dtype | None) -> Any:
    """torch.autocast, or nothing without a dtype."""
    return torch.autocast(device_type, dtype) if dtype else nullcontext()


class Stepper:
    """A model that makes training and inference steps in any variant, always with the same weights.

    A training step is the model's own ``train_step``: data preprocessor, loss, backward, clipping and the
    optimizer as the config has them. Learning rates are 0, which costs as much and changes nothing. An
    inference step is the model's ``test_step``, with post-processing.

    Args:
        model: The model, on its device.
        cfg: Its config.
        make_batch: Makes a batch of so many images.
    """

    def __init__(self, model: BaseModel, cfg: Config, make_batch: Callable[[int], dict[str, Any]]) -> None:
        self.model, self.make_batch = model, make_batch
        self.device_type = next(model.parameters()).device.type
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
        """A function that makes one step."""
        model, dtype = self.model, DTYPES[variant.precision]
        batch = self.make_batch(variant.batch_size)
        forward = self.eager_forward
        if variant.compiled:
            # One graph for each variant, and no silent return to eager mode when there are many.
            torch._dynamo.config.recompile_limit = MAX_GRAPHS
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            forward = torch.compile(forward, dynamic=False)
        if dtype is torch.float16:
            wrapper = AmpOptimWrapper(dtype='float16', **self.wrapper_args)
        else:
            wrapper = AutocastOptimWrapper(self.device_type, dtype, **self.wrapper_args)

        def train() -> Any:
            model.forward = forward
            return model.train().train_step(copy.copy(batch), wrapper)

        @torch.no_grad()
        def infer() -> Any:
            model.forward = forward
            with autocast(self.device_type, dtype):
                return model.eval().test_step(copy.copy(batch))

        return train if variant.mode == 'training' else infer


def time_in_turn(steps: dict[Variant, Callable[[], Any]], repeats: int) -> dict[Variant, Measurement]:
    """Time steps in turn, so that a machine that slows down slows all of them.

    Every timed step comes after two of the same variant that are not (torch.utils.benchmark's warm-up), and
    the device is waited for.

    Args:
        steps: What to time.
        repeats: Timed steps of each.
    """
    timers = {
        variant: Timer('step()', globals=dict(step=step), num_threads=torch.get_num_threads())
        for variant, step in steps.items()
    }
    measured = {variant: [] for variant in steps}
    for _ in range(repeats):
        for variant, timer in timers.items():
            measured[variant].append(timer.timeit(1))
    return {variant: Measurement.merge(several)[0] for variant, several in measured.items()}
