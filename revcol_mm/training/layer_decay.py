"""Layer-wise learning-rate decay for any backbone with ``get_layer_depth``.

MMPretrain has such a constructor, but only for its own classifiers and with one group for each parameter:
about 1450 for RevCol-B, which prevents fused optimizer updates.
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

    ``backbone.get_layer_depth(name, prefix)`` gives the depth of a backbone's parameter. Parameters outside
    the backbone have the last depth and therefore the full learning rate. 1-D parameters (norms and biases)
    and those that the optional ``backbone.no_weight_decay()`` names get no weight decay. Frozen parameters
    are left out. Parameters with equal depth, learning rate and weight decay share a group.

    Args:
        optim_wrapper_cfg: As in MMEngine; the optimizer needs 'lr' and 'weight_decay'.
        paramwise_cfg: ``decay_rate`` in (0, 1] and, optionally, ``custom_keys``: a dict from a substring of
            parameter names to ``lr_mult`` and ``decay_mult``. The longest matching substring is used.
            ``lr_mult`` multiplies the layer's scale; ``decay_mult`` replaces the rule for 1-D parameters.

    Raises:
        ValueError: If an option is unknown or out of range, a custom key matches no parameter, no module has
            ``get_layer_depth``, or it is not implemented for this architecture and the rate is below 1.

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
        """Append the parameter groups of ``module`` to ``params``, and log them as a table."""
        custom_keys = self.paramwise_cfg.get('custom_keys', {})
        by_length = sorted(custom_keys, key=len, reverse=True)
        unmatched = set(custom_keys)
        backbones = _modules_with_depth(module)
        no_decay = {
            prefix + name
            for prefix, backbone in backbones.items()
            for name in getattr(backbone, 'no_weight_decay', tuple)()
        }
        groups = defaultdict(list)
        for name, param in module.named_parameters():
            key = next((key for key in by_length if key in name), None)
            unmatched.discard(key)
            if not param.requires_grad:
                continue
            options = custom_keys.get(key, {})
            depth, num_depths = self._layer_depth(backbones, name)
            is_flat = param.ndim <= 1 or name in no_decay
            scale = self.paramwise_cfg['decay_rate'] ** (num_depths - 1 - depth)
            decay_mult = options.get('decay_mult', 0.0 if is_flat else 1.0)
            groups[depth, options.get('lr_mult', 1.0) * scale, decay_mult].append((name, param))
        if unmatched:
            raise ValueError(f'custom_keys match no parameter: {sorted(unmatched)}')

        rows = [f'{"depth":>5} {"lr":>9} {"decay":>7} {"tensors":>7} {"parameters":>12}  first parameter']
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

    def _layer_depth(self, backbones: dict[str, nn.Module], name: str) -> tuple[int, int]:
        """Return the depth of a parameter and the number of depths, from the backbone that it belongs to.

        Any backbone knows the depth of parameters outside of it.
        """
        prefix = next((prefix for prefix in backbones if name.startswith(prefix)), next(iter(backbones)))
        backbone = backbones[prefix]
        try:
            return backbone.get_layer_depth(name, prefix)
        except NotImplementedError as error:  # such as MMPretrain's ResNet of less than 50 layers
            if self.paramwise_cfg['decay_rate'] == 1:
                return 0, 1  # depths have no effect
            raise ValueError(
                f'{type(backbone).__name__}.get_layer_depth is not implemented for {name!r}: use another '
                'backbone or decay_rate=1'
            ) from error


def _modules_with_depth(model: nn.Module) -> dict[str, nn.Module]:
    """Return the innermost modules that have ``get_layer_depth``, by the prefix of their parameters."""
    found = {
        f'{name}.' if name else '': module
        for name, module in model.named_modules()
        if hasattr(module, 'get_layer_depth')
    }
    if not found:
        raise ValueError(
            f'layer-wise learning-rate decay needs a backbone with get_layer_depth(param_name, prefix); '
            f'{type(model).__name__} has none'
        )
    return {
        prefix: module
        for prefix, module in found.items()
        if not any(other != prefix and other.startswith(prefix) for other in found)
    }
