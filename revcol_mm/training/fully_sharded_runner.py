"""A runner that shards weights, gradients and optimizer state over the processes (FSDP2)."""

import re
import shutil
from pathlib import Path
from typing import Any, Iterable

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
from .sharded_tensors import full_tensor


class _BoundShardedAlphasHook(Hook):
    """Bounds the sharded alphas before every iteration.

    The backbone's forward pass bounds only gathered copies, but backward gathers the shards again.
    """

    priority = 'LOWEST'

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        bound_alphas_(_columns(runner.model))


class _OmitShardedTensorsHook(Hook):
    """Removes the sharded tensors from the checkpoint file that the main process writes."""

    priority = 'LOWEST'

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        del checkpoint['state_dict']
        if 'optimizer' in checkpoint:
            del checkpoint['optimizer']['state']


def _columns(model: nn.Module) -> list[nn.Module]:
    return [column for part in model.modules() if isinstance(part, ColumnBackbone) for column in part.columns]


@RUNNERS.register_module()
class FullyShardedRunner(ResumableRunner):
    """ResumableRunner for models whose optimizer state does not fit one GPU, using torch's ``fully_shard``.

    Enable it with ``runner_type = 'FullyShardedRunner'`` in a config or with ``--cfg-options``, and start it
    with ``tools/dist_train.sh``. Every process holds a shard of each weight, gradient and optimizer state. It
    gathers the weights of one column at a time, and those of the other modules, which are small compared to
    RevCol-H, for the whole iteration. Losses and weights equal those of MMDistributedDataParallel, also with
    ``save_memory=True``. (MMEngine's FSDPStrategy uses FSDP1, which does not support reversible training.)

    A checkpoint such as ``iter_4000.pth`` is a folder, see :mod:`revcol_mm.checkpoints.shards`, which is
    either complete or does not exist. ``--resume`` accepts it with any number of processes; ``load_from``,
    ``tools/test.py`` and ``tools/publish_model.py`` accept it like a file;
    ``tools/convert_checkpoint.py`` converts its weights to a file. ``load_from`` accepts any checkpoint but
    that of a single network for the columns of a ReversibleColumns, which can be loaded only before they are
    sharded: name it in the backbone's ``init_cfg``.

    Raises:
        PreflightError: If there is only one process, the config has a ``model_wrapper_cfg`` or an EMAHook,
            or there is no GPU and this torch cannot shard on CPUs.
        CheckpointError: If the checkpoint to resume from is not sharded; see also ResumableRunner.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if any(isinstance(hook, EMAHook) for hook in self.hooks):
            raise PreflightError('FullyShardedRunner cannot copy the model for EMAHook: remove the hook')
        self.register_hook(_BoundShardedAlphasHook())
        self.register_hook(_OmitShardedTensorsHook())

    @staticmethod
    def _check_kind(checkpoint: Path) -> None:
        if not is_sharded(checkpoint):
            raise CheckpointError(
                f'{checkpoint} is not sharded, so FullyShardedRunner cannot resume from it; start a new run '
                'from its weights with load_from'
            )

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Initialise the weights, equally in all processes, and shard the model."""
        if not self.distributed:
            raise PreflightError(
                'FullyShardedRunner needs several processes: start it with tools/dist_train.sh or use '
                '--launcher'
            )
        if model_wrapper_cfg is not None:
            raise PreflightError(f'FullyShardedRunner takes no model_wrapper_cfg, got {model_wrapper_cfg}')
        device = get_device()
        if device == 'cpu' and not hasattr(torch.cpu.Stream, 'record_event'):
            raise PreflightError(
                f'fully_shard of torch {torch.__version__} needs GPUs; update torch to use CPUs'
            )
        self.model = model.to(device)
        super()._init_model_weights()
        mesh = init_device_mesh(torch.device(device).type, (get_world_size(),))
        for column in _columns(model):
            fully_shard(column, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def _init_model_weights(self) -> None:
        """No-op: weights were initialised before sharding, in :meth:`wrap_model`."""

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper:
        """Build the optimizer so that MMEngine logs the norm of the full gradients, not of shards."""
        if not isinstance(optim_wrapper, dict):
            return optim_wrapper
        wrapper = super().build_optim_wrapper(optim_wrapper)
        clip = getattr(wrapper, 'clip_func', None)
        if clip is not None:
            wrapper.clip_func = lambda *args, **kwargs: full_tensor(clip(*args, **kwargs))
        return wrapper

    def save_checkpoint(
        self, out_dir: str, filename: str, *args: Any, save_optimizer: bool = True, **kwargs: Any
    ) -> None:
        """Write a folder that is either complete or does not exist; all processes must call it.

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
        self,
        filename: str,
        map_location: Any = 'cpu',
        strict: bool = False,
        revise_keys: Iterable[tuple[str, str]] = (('^module.', ''),),
    ) -> dict[str, Any]:
        """Load a sharded checkpoint when resuming, else the weights of any checkpoint.

        Raises:
            CheckpointError: If no weight fits the model or, with ``strict``, any does not.
        """
        if self._resume:
            return self._load_shards(filename)
        checkpoint = CheckpointLoader.load_checkpoint(filename, map_location='cpu', logger=self.logger)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        own, weights = self.model.state_dict(), checkpoint.get('state_dict', checkpoint)
        for pattern, replacement in revise_keys:
            weights = {re.sub(pattern, replacement, name): weight for name, weight in weights.items()}
        num_given = len(weights)
        weights = {n: w for n, w in weights.items() if n in own and own[n].shape == w.shape}
        if not weights or (strict and not len(own) == len(weights) == num_given):
            raise CheckpointError(f'{filename} has {len(weights)} of the {len(own)} weights of the model')
        set_model_state_dict(
            self.model, weights, options=StateDictOptions(full_state_dict=True, strict=False)
        )
        self._has_loaded = True
        return checkpoint

    def _load_shards(self, path: str) -> dict[str, Any]:
        """Load shards into the model; return the rest of the checkpoint with the optimizer's shards."""
        state: dict[int, dict[str, Tensor]] = {}
        params = [param for group in self.optim_wrapper.param_groups for param in group['params']]
        for keys, (shape, dtype) in shapes(path).items():
            if keys[:2] == ('optimizer', 'state'):
                index, name = int(keys[2]), keys[3]
                is_sharded_like_param = shape == params[index].shape  # unlike the number of steps
                state.setdefault(index, {})[name] = (
                    torch.zeros_like(params[index])
                    if is_sharded_like_param
                    else torch.zeros(shape, dtype=dtype)
                )
        # The tensors of model.state_dict() are the model's parameters, so loading writes to the model.
        load_shards({'state_dict': self.model.state_dict(), 'optimizer': {'state': state}}, path)
        checkpoint = CheckpointLoader.load_checkpoint(str(Path(path, REST)), 'cpu', self.logger)
        checkpoint['optimizer']['state'] = state
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        self.logger.info(f'Load sharded checkpoint from {path}')
        return checkpoint
