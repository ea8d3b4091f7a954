"""Layer-wise learning-rate decay for any backbone that tells the depth of its parameters.

MMPretrain's constructor works the same way, but only for MMPretrain's classifiers, needs MMPretrain, and
makes one group for each parameter: about 1450 for RevCol-B, which keeps optimizers from fusing updates.
"""

from collections import defaultdict
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Scale the learning rate by ``decay_rate ** (num_depths - 1 - depth)``.

    The depth of a backbone's parameter comes from ``backbone.get_layer_depth(name, prefix)``; whatever is
    outside the backbone has the last depth and so the full learning rate. 1-D parameters (norms and
    biases) and those in ``backbone.no_weight_decay()``, if there is one, get no weight decay. Frozen
    parameters are left out. There is one group for each pair of learning rate and weight decay.

    Args:
        optim_wrapper_cfg: As in MMEngine; the optimizer has 'lr' and 'weight_decay'.
        paramwise_cfg: ``decay_rate`` in (0, 1] and, optionally, ``custom_keys``: a dict from a part of a
            parameter's name to ``lr_mult`` and ``decay_mult``, the longest matching part first.
            ``lr_mult`` comes on top of the layer's scale; ``decay_mult`` replaces the rule above.

    Raises:
        ValueError: If an option is none of these, no part of the model answers ``get_layer_depth``, one does
            not for this architecture though the rate is below 1, or a custom key matches no parameter.

    Examples:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(decay_rate=0.9, custom_keys=dict(query_embed=dict(decay_mult=0))))
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        unknown = set(self.paramwise_cfg) - {'decay_rate', 'custom_keys'}
        if unknown:
            raise ValueError(
                f'paramwise_cfg of {type(self).__name__} takes decay_rate and custom_keys, '
                f'not {sorted(unknown)}'
            )
        decay_rate = self.paramwise_cfg.get('decay_rate')
        if not isinstance(decay_rate, (int, float)) or not 0 < decay_rate <= 1:
            raise ValueError(f'paramwise_cfg needs a decay_rate in (0, 1], got {decay_rate!r}')
        for key, options in self.paramwise_cfg.get('custom_keys', {}).items():
            if set(options) - {'lr_mult', 'decay_mult'}:
                raise ValueError(f'custom_keys[{key!r}] takes lr_mult and decay_mult, got {sorted(options)}')
        if self.base_lr is None or self.base_wd is None:
            raise ValueError("the optimizer's config must have 'lr' and 'weight_decay'")

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **kwargs: Any) -> None:
        """Append the groups of ``module`` to ``params`` and log them as a table."""
        custom_keys = self.paramwise_cfg.get('custom_keys', {})
        by_length = sorted(custom_keys, key=len, reverse=True)
        unmatched = set(custom_keys)
        answering = _answering_modules(module)
        no_decay = {
            prefix + name
            for prefix, part in answering.items()
            for name in getattr(part, 'no_weight_decay', tuple)()
        }
        groups = defaultdict(list)
        for name, param in module.named_parameters():
            key = next((key for key in by_length if key in name), None)
            unmatched.discard(key)
            if not param.requires_grad:
                continue
            options = custom_keys.get(key, {})
            depth, num_depths = self._layer_depth(answering, name)
            is_flat = param.ndim <= 1 or name in no_decay
            scale = self.paramwise_cfg['decay_rate'] ** (num_depths - 1 - depth)
            decay_mult = options.get('decay_mult', 0.0 if is_flat else 1.0)
            groups[depth, options.get('lr_mult', 1.0) * scale, decay_mult].append((name, param))
        if unmatched:
            raise ValueError(f'custom_keys match no parameter: {sorted(unmatched)}')

        rows = [f'{"depth":>5} {"lr":>9} {"decay":>7} {"tensors":>7} {"parameters":>12}  first of them']
        for (depth, lr_scale, decay_mult), members in sorted(groups.items()):
            names, tensors = zip(*members)
            lr, weight_decay = self.base_lr * lr_scale, self.base_wd * decay_mult
            params.append(
                dict(
                    params=list(tensors),
                    lr=lr,
                    weight_decay=weight_decay,
                    lr_scale=lr_scale,
                    param_names=list(names),
                )
            )
            size = sum(tensor.numel() for tensor in tensors)
            rows.append(f'{depth:5} {lr:9.3g} {weight_decay:7.3g} {len(tensors):7} {size:12,}  {names[0]}')
        print_log(f'{len(groups)} parameter groups:\n' + '\n'.join(rows), logger='current')

    def _layer_depth(self, answering: dict[str, nn.Module], name: str) -> tuple[int, int]:
        """Ask the part that a parameter belongs to; any part knows the depth of what is outside of it."""
        prefix = next((prefix for prefix in answering if name.startswith(prefix)), next(iter(answering)))
        part = answering[prefix]
        try:
            return part.get_layer_depth(name, prefix)
        except NotImplementedError as error:  # such as MMPretrain's ResNet of less than 50 layers
            if self.paramwise_cfg['decay_rate'] == 1:
                return 0, 1  # no depth changes anything
            raise ValueError(
                f'{type(part).__name__} does not tell the depth of {name!r}, which a decay_rate below 1 needs'
            ) from error


def _answering_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Innermost parts of a model that have ``get_layer_depth``, by the prefix of their parameters."""
    answering = {
        f'{name}.' if name else '': part
        for name, part in model.named_modules()
        if hasattr(part, 'get_layer_depth')
    }
    if not answering:
        raise ValueError(
            f'no part of {type(model).__name__} has get_layer_depth(param_name, prefix), so layer-wise '
            'learning-rate decay does not know the depth of its parameters'
        )
    return {
        prefix: part
        for prefix, part in answering.items()
        if not any(other != prefix and other.startswith(prefix) for other in answering)
    }
