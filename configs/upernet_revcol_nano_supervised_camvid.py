# UPerNet with RevCol nano on CamVid with intermediate supervision. All hyper-parameters are ours.
_base_ = ['upernet_revcol_nano_camvid.py']

model = dict(
    type='SupervisedColumns',
    model_type='EncoderDecoder',
    supervision=dict(reconstruction_weight=0.3, head=_base_.model.auxiliary_head),
)
