"""Stop a run, or skip an iteration, whose loss or gradient is infinite or NaN."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import get_total_norm
from torch.utils._pytree import tree_leaves

from revcol_mm.data.random_states import restored_random_states
from revcol_mm.ops import check_reconstruction
from revcol_mm.ops.call import random_states, replayed
from revcol_mm.unwrapped import unwrapped

from .guarded_methods import guard, remove_guards
from .sharded_tensors import full_tensor


class NonFiniteError(RuntimeError):
    """A loss or a gradient is infinite or NaN."""


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stop a run before an infinite or NaN loss or gradient changes the weights.

    The error names the images of the batch and the first module whose output is not finite or, if there is
    none, the first parameter whose gradient is not. A checkpoint with the weights before the iteration is
    saved. Gradients are not checked under a gradient scaler, which skips infinite gradients itself.

    Args:
        max_skips: Number of iterations that may be skipped before the run is stopped. The count is saved in
            checkpoints. With ``accumulative_counts``, the optimizer step is skipped with its last iteration.

    Raises:
        NonFiniteError: During training, for the first such iteration beyond ``max_skips``.
        ValueError: If ``max_skips`` is negative.
    """

    priority = 'LOWEST'  # so that random_states is taken after other hooks have drawn or seeded

    def __init__(self, max_skips: int = 0) -> None:
        if max_skips < 0:
            raise ValueError(f'max_skips must be 0 or more, got {max_skips}')
        self.max_skips = max_skips

    def before_train(self, runner: Runner) -> None:
        """Check every loss before the backward pass, and every gradient before it is clipped."""

        def is_good_loss(loss: Tensor, *_: Any, **__: Any) -> bool:
            is_good = self._is_good(runner, 'loss', loss.detach().isfinite().all())
            if not is_good:  # steps stay at multiples of accumulative_counts
                runner.optim_wrapper._inner_count += 1
                if runner.optim_wrapper.should_update():
                    # No step with the earlier losses: only the last backward exchanges gradients in DDP.
                    runner.optim_wrapper.zero_grad()
            return is_good

        def are_good_gradients(*_: Any, **__: Any) -> bool:
            grads = [param.grad for param in runner.model.parameters() if param.grad is not None]
            # Not error_if_nonfinite=True: all processes must agree before one of them raises.
            return self._is_good(runner, 'gradient', full_tensor(get_total_norm(grads)).isfinite())

        guard(runner.optim_wrapper, 'update_params', is_good_loss)
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        if scaler is None or not scaler.is_enabled():
            guard(runner.optim_wrapper, 'step', are_good_gradients)

    def after_train(self, runner: Runner) -> None:
        remove_guards(runner.optim_wrapper)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.data_batch = data_batch
        self.device = next(runner.model.parameters()).device
        self.random_states = random_states(self.device)
        self.python_state, self.numpy_state = random.getstate(), np.random.get_state()
        # Running statistics change in the forward pass, before the loss is known.
        self.buffers = {name: buffer.clone() for name, buffer in runner.model.named_buffers()}

    def _restore_buffers(self, model: nn.Module) -> None:
        for name, buffer in model.named_buffers():
            buffer.copy_(self.buffers[name])

    def _is_good(self, runner: Runner, what: str, is_finite: Tensor) -> bool:
        """Return False if the iteration is to be skipped, in all processes if in any; or raise an error."""
        if get_world_size() > 1:
            is_finite = is_finite.int()
            all_reduce(is_finite, 'min')
        if is_finite:
            return True
        iteration = runner.iter + 1
        num_skips = runner.message_hub.get_info('nonfinite_skips', 0) + 1
        checkpoint = f'nonfinite_iter_{iteration}.pth'
        self._restore_buffers(runner.model)
        if num_skips > self.max_skips:  # saved first, since running the batch again may fail
            meta = dict(epoch=runner.epoch, iter=runner.iter)  # without the iteration that is not finite
            runner.save_checkpoint(runner.work_dir, checkpoint, meta=meta, by_epoch=False)
        message = (
            f'the {what} of iteration {iteration} is not finite: {self._origin(runner)}; '
            f'images: {self._image_names()}'
        )
        if num_skips > self.max_skips:
            raise NonFiniteError(f'{message}. The weights before it are in {runner.work_dir}/{checkpoint}')
        runner.message_hub.update_info('nonfinite_skips', num_skips)
        runner.logger.warning(f'{message}. Skipped; {self.max_skips - num_skips} more may be skipped')
        return False

    def _image_names(self) -> str:
        samples = self.data_batch.get('data_samples', ()) if isinstance(self.data_batch, dict) else ()
        paths = [getattr(sample, 'img_path', None) for sample in samples]
        return ', '.join(str(path) for path in paths if path) or 'the batch does not name them'

    def _origin(self, runner: Runner) -> str:
        """Run the forward pass again, and describe where the first non-finite value arises."""
        problem = None
        try:
            check_reconstruction()
        except RuntimeError as error:
            problem = str(error)
        # The forward pass may hold collective operations: either all processes run it, or none.
        for each in all_gather_object(problem):
            if each is not None:
                return each
        model = unwrapped(runner.model)
        module_names = {module: name or 'the model' for name, module in model.named_modules()}
        found: list[str] = []

        def inspect(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if module in module_names and not all(tensor.isfinite().all() for tensor in tensors):
                found.append(f'{module_names[module]} ({type(module).__name__})')

        with (
            register_module_forward_hook(inspect),
            restored_random_states(),
            replayed(self.device, self.random_states),
            torch.no_grad(),
            runner.optim_wrapper.optim_context(model),
        ):
            random.setstate(self.python_state)
            np.random.set_state(self.numpy_state)
            data = model.data_preprocessor(self.data_batch, training=True)
            model._run_forward(data, mode='loss')
        self._restore_buffers(runner.model)
        if found:
            return f'the first module with such an output is {found[0]}'
        for name, param in model.named_parameters():
            if param.grad is not None and not param.grad.isfinite().all():
                return f'all outputs are finite, but the gradient of {name} is not'
        return 'all values are finite when the batch is run again'
