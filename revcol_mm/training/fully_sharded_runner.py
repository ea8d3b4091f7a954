"""Training whose weights, gradients and optimizer state are spread over the processes (FSDP2)."""

import shutil
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from revcol_mm.checkpoints.run_files import replace_folder
from revcol_mm.checkpoints.shards import REST, is_sharded, load_shards, shapes, write_shards
from revcol_mm.errors import CheckpointError, PreflightError
from revcol_mm.models import ColumnBackbone
from revcol_mm.models.layers import bound_alphas_

from .runner import ResumableRunner


class _Shards(Hook):
    """Keeps the shards of alphas in their bounds, and tensors out of what the main process writes."""

    priority = 'LOWEST'

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """A backbone bounds the alphas that it has gathered; backward gathers the shards again."""
        bound_alphas_(_columns(runner.model))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        del checkpoint['state_dict']
        if 'optimizer' in checkpoint:
            del checkpoint['optimizer']['state']


def _columns(model: nn.Module) -> list[nn.Module]:
    return [column for part in model.modules() if isinstance(part, ColumnBackbone) for column in part.columns]


@RUNNERS.register_module()
class FullyShardedRunner(ResumableRunner):
    """ResumableRunner for models whose optimizer state does not fit one GPU: torch's ``fully_shard``.

    ``runner_type = 'FullyShardedRunner'`` in a config, or ``--cfg-options runner_type=FullyShardedRunner``,
    turns it on; start it as any run on several processes, with ``tools/dist_train.sh``. Every process holds
    its part of each weight, gradient and optimizer state, and gathers the weights of one column at a time;
    those of the rest of the model, which is small beside RevCol-H, for a whole iteration. Losses and weights
    are those of MMDistributedDataParallel, with ``save_memory=True`` too. (MMEngine's FSDPStrategy is FSDP1,
    which hides the parameters that reversible training needs.)

    A checkpoint such as ``iter_4000.pth`` is a folder, see :mod:`revcol_mm.checkpoints.shards`, either
    whole or not there. ``--resume`` takes it with any number of processes. ``load_from``, ``tools/test.py``,
    ``tools/publish_model.py`` and ``tools/convert_checkpoint.py`` take it as they take a file; the last makes
    a file of its weights. Any checkpoint can be in ``load_from``.

    Raises:
        PreflightError: If there is one process only, the config has a ``model_wrapper_cfg`` or an EMAHook:
            it copies the model, which torch cannot do with one that is sharded; or torch shards on GPUs alone
            and there is none.
        CheckpointError: If the checkpoint that is named to resume from is not sharded; besides, as
            ResumableRunner.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if any(isinstance(hook, EMAHook) for hook in self.hooks):
            raise PreflightError('EMAHook copies the model, which FullyShardedRunner cannot: leave it out')
        self.register_hook(_Shards())

    @staticmethod
    def _check_kind(source: Path) -> None:
        if not is_sharded(source):
            raise CheckpointError(
                f'{source} is not sharded, so FullyShardedRunner cannot resume from it; load_from takes its '
                'weights'
            )

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Initialize the model's weights, the same in all processes, and shard it."""
        if not self.distributed:
            raise PreflightError(
                'FullyShardedRunner needs several processes: start it with tools/dist_train.sh, or give '
                '--launcher'
            )
        if model_wrapper_cfg is not None:
            raise PreflightError(f'FullyShardedRunner takes no model_wrapper_cfg, got {model_wrapper_cfg}')
        device = get_device()
        if device == 'cpu' and not hasattr(torch.cpu.Stream, 'record_event'):
            raise PreflightError(
                f'fully_shard of torch {torch.__version__} works on GPUs alone; CPUs need a newer torch'
            )
        self.model = model.to(device)
        super()._init_model_weights()
        mesh = init_device_mesh(torch.device(device).type, (get_world_size(),))
        for column in _columns(model):
            fully_shard(column, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def _init_model_weights(self) -> None:
        """It is done: MMEngine would do it now, when no process has a whole weight."""

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper:
        """As in MMEngine, which would log the norm of the main process's shards as that of gradients."""
        if not isinstance(optim_wrapper, dict):
            return optim_wrapper
        wrapper = super().build_optim_wrapper(optim_wrapper)
        clip = getattr(wrapper, 'clip_func', None)
        if clip is not None:
            wrapper.clip_func = lambda *args, **kwargs: _whole(clip(*args, **kwargs))
        return wrapper

    def save_checkpoint(
        self, out_dir: str, filename: str, *args: Any, save_optimizer: bool = True, **kwargs: Any
    ) -> None:
        """Write a folder that is either whole or not there; every process calls it.

        Raises:
            CheckpointError: If it cannot be written, as on a full disk.
        """
        final = Path(out_dir, filename)
        unfinished = final.with_name(f'.{filename}')
        if is_main_process():
            shutil.rmtree(unfinished, ignore_errors=True)
        barrier()
        tensors = {'state_dict': self.model.state_dict()}
        if save_optimizer:
            tensors['optimizer'] = {'state': self.optim_wrapper.state_dict()['state']}
        try:
            write_shards(tensors, unfinished)
        except CheckpointException as error:
            raise CheckpointError(f'cannot write {final}: {error}') from error
        super().save_checkpoint(str(unfinished), REST, *args, save_optimizer=save_optimizer, **kwargs)
        if is_main_process():
            replace_folder(unfinished, final)
        barrier()

    def load_checkpoint(
        self, filename: str, map_location: Any = 'cpu', strict: bool = False, revise_keys: Any = ()
    ) -> dict[str, Any]:
        """Load a sharded checkpoint to resume from, or the weights of any checkpoint to start from."""
        if self._resume:
            checkpoint = self._load_shards(filename)
            self._check_optimizer(checkpoint)
            return checkpoint
        checkpoint = CheckpointLoader.load_checkpoint(filename, map_location='cpu', logger=self.logger)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        own = self.model.state_dict()
        weights = {
            name: weight
            for name, weight in checkpoint['state_dict'].items()
            if name in own and own[name].shape == weight.shape
        }
        set_model_state_dict(
            self.model, weights, options=StateDictOptions(full_state_dict=True, strict=False)
        )
        self._has_loaded = True
        return checkpoint

    def _load_shards(self, path: str) -> dict[str, Any]:
        """Load the model's shards, and return the rest of a checkpoint with the optimizer's shards."""
        state: dict[int, dict[str, Tensor]] = {}
        params = [param for group in self.optim_wrapper.param_groups for param in group['params']]
        for keys, (shape, dtype) in shapes(path).items():
            if keys[:2] == ('optimizer', 'state'):
                index, name = int(keys[2]), keys[3]
                is_whole = shape != params[index].shape  # such as the number of steps
                state.setdefault(index, {})[name] = (
                    torch.zeros(shape, dtype=dtype) if is_whole else torch.zeros_like(params[index])
                )
        # The state dict's tensors are the model's own.
        load_shards({'state_dict': self.model.state_dict(), 'optimizer': {'state': state}}, path)
        checkpoint = CheckpointLoader.load_checkpoint(str(Path(path, REST)), 'cpu', self.logger)
        checkpoint['optimizer']['state'] = state
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        self.logger.info(f'Load sharded checkpoint from {path}')
        return checkpoint


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is sharded; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor
