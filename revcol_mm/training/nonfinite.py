"""Losses and gradients that are not finite, found in the iteration in which they arise."""

from contextlib import contextmanager
from typing import Any, Iterator

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from revcol_mm.ops import check_reconstruction
from revcol_mm.ops.call import random_states, replayed


class NonFiniteError(RuntimeError):
    """A loss or a gradient is infinite or not a number."""


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stops a run whose loss or gradient is infinite or not a number, before weights are changed by it.

    It names the images of the batch, and the first module whose output is not finite or, if all are, the
    first parameter whose gradient is not; and it saves a checkpoint. Where a gradient scaler looks for
    infinite gradients itself and makes up for them, only the loss is looked at.

    Args:
        max_skips: Iterations to leave out before the run is stopped; resuming does not begin to count anew.

    Raises:
        NonFiniteError: With all of the above.
        ValueError: If ``max_skips`` is negative.
    """

    priority = 'LOWEST'  # what other hooks draw before an iteration is not drawn again

    def __init__(self, max_skips: int = 0) -> None:
        if max_skips < 0:
            raise ValueError(f'max_skips takes a number from 0 on, got {max_skips}')
        self.max_skips = max_skips

    def before_train(self, runner: Runner) -> None:
        """Look at every loss before its backward pass, and at every gradient before it is clipped."""
        wrapper = runner.optim_wrapper
        update_params, step = wrapper.update_params, wrapper.step

        def guarded_update(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            if not self._is_bad(runner, 'loss', ~loss.detach().isfinite().all()):
                update_params(loss, *args, **kwargs)

        def guarded_step(*args: Any, **kwargs: Any) -> None:
            if not self._is_bad(runner, 'gradient', self._has_bad_gradient(runner)):
                step(*args, **kwargs)

        wrapper.update_params = guarded_update
        scaler = getattr(wrapper, 'loss_scaler', None)
        if scaler is None or not scaler.is_enabled():
            wrapper.step = guarded_step

    def after_train(self, runner: Runner) -> None:
        """Leave the optimizer as it was."""
        for name in ('update_params', 'step'):
            vars(runner.optim_wrapper).pop(name, None)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.data_batch = data_batch
        self.device = next(runner.model.parameters()).device
        self.random_states = random_states(self.device)
        # running statistics are changed before the loss is known
        self.buffers = {name: buffer.clone() for name, buffer in runner.model.named_buffers()}

    @staticmethod
    def _has_bad_gradient(runner: Runner) -> Tensor:
        grads = [param.grad for param in runner.model.parameters() if param.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        norm = getattr(norm, 'full_tensor', lambda: norm)()  # of shards, under FSDP2
        return ~norm.isfinite()

    def _is_bad(self, runner: Runner, what: str, bad: Tensor) -> bool:
        """Whether to skip; the processes of a distributed run agree on it."""
        if get_world_size() > 1:
            bad = bad.int()
            all_reduce(bad, 'max')
        if not bad:
            return False
        number = runner.iter + 1
        _restore(runner.model, self.buffers)
        skipped = runner.message_hub.get_info('nonfinite_skips', 0) + 1  # a checkpoint holds it
        name = f'nonfinite_iter_{number}.pth'
        if skipped > self.max_skips:  # before the batch is run again, which may fail in new ways
            runner.save_checkpoint(runner.work_dir, name, by_epoch=False)
        origin, images = self._origin(runner), self._images()
        message = f'the {what} of iteration {number} is not finite: {origin}; images: {images}'
        if skipped <= self.max_skips:
            runner.message_hub.update_info('nonfinite_skips', skipped)
            runner.logger.warning(f'{message}. Skipped; {self.max_skips - skipped} more may be')
            return True
        raise NonFiniteError(f'{message}. The weights before it are in {runner.work_dir}/{name}')

    def _images(self) -> str:
        samples = self.data_batch.get('data_samples', ()) if isinstance(self.data_batch, dict) else ()
        paths = [getattr(sample, 'img_path', None) for sample in samples]
        return ', '.join(str(path) for path in paths if path) or 'the batch does not name them'

    def _origin(self, runner: Runner) -> str:
        """Run the batch again and look at every output."""
        try:
            check_reconstruction()
        except RuntimeError as error:
            return str(error)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        with (
            _first_nonfinite_output(model) as found,
            _unchanged_buffers(model),
            replayed(self.device, self.random_states),
            torch.no_grad(),
        ):
            with runner.optim_wrapper.optim_context(model):
                data = model.data_preprocessor(self.data_batch, training=True)
                model._run_forward(data, mode='loss')
        if found:
            return f'the first such output is that of {found[0]}'
        for name, param in model.named_parameters():
            if param.grad is not None and not param.grad.isfinite().all():
                return f'all outputs are finite, the gradient of {name} is not'
        return 'it is not so when the batch is run again'


@contextmanager
def _first_nonfinite_output(model: nn.Module) -> Iterator[list[str]]:
    """A list with the name of the first module, and type, that returns something that is not finite."""
    found: list[str] = []

    def look(name: str, module: nn.Module, output: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if not found and not all(tensor.isfinite().all() for tensor in tensors):
            found.append(f'{name or "the model"} ({type(module).__name__})')

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: look(name, module, output))
        for name, module in model.named_modules()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Leave no trace in running statistics."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        _restore(model, buffers)


def _restore(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
