from .init_model import init_model, pick_device

__all__ = ['init_model', 'pick_device']
