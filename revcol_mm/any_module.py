"""The type of modules of other packages."""

from typing import Any, TypeAlias

# A module with the attributes of its class. For type checkers, those of nn.Module are tensors or modules.
AnyModule: TypeAlias = Any
