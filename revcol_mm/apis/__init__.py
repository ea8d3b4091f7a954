"""Inference with models, from files or a hub."""

from .inferencer import Inferencer
from .init_inferencer import init_inferencer
from .init_model import init_model, pick_device

__all__ = ['Inferencer', 'init_inferencer', 'init_model', 'pick_device']
