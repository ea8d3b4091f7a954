# upernet_convnext_nano_2columns_camvid.py with intermediate supervision of the first column. All
# hyper-parameters are ours.
_base_ = ['upernet_convnext_nano_2columns_camvid.py']

model = dict(
    type='SupervisedColumns',
    model_type='EncoderDecoder',
    supervision=dict(columns=[0], reconstruction_weight=0.3, head=_base_.model.auxiliary_head),
)
