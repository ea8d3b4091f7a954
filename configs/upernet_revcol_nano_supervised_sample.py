# UPerNet on the sample data with intermediate supervision. All hyper-parameters are ours.
_base_ = ['upernet_revcol_nano_sample.py']

model = dict(
    type='SupervisedColumns',
    model_type='EncoderDecoder',
    supervision=dict(reconstruction_weight=0.3, head=_base_.model.auxiliary_head),
)
