"""Export of whole models, from raw images to predictions.

:func:`.build_image_graph.build_image_graph` rewrites a trained model as an :class:`.image_graph.ImageGraph`,
a module of tensors only; each family has its own (:mod:`.anchor_graphs`, :mod:`.dino_graph`,
:mod:`.mask2former_graph`). :mod:`.exported_file` writes it to a file and opens such files again.
"""
