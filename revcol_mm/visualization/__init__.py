from .prediction_pictures import PredictionPicturesHook

__all__ = ['PredictionPicturesHook']
