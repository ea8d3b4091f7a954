"""Writing predictions to files in the formats of COCO and ADE20K."""

import json
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np

from revcol_mm.panopticapi.utils import id2rgb

from .image_files import Picture, Source
from .image_header import ImageError
from .inferencer import Inferencer
from .task_inferencers import DetectionInferencer, PanopticInferencer, SegmentationInferencer


class PredictionWriter:
    """Context manager that writes predictions and pictures of them below a folder.

    - ``overlays/NAME.png``: the image with the prediction drawn on it. For a video ``overlays/NAME.mp4``.
    - ``images.json``: a COCO annotation file without annotations. Its 'images' have 'id', 'file_name'
      (relative to the folder 'info.root'), 'width', 'height' and, for a video, 'frame', from 0 on. Its
      'categories' have 'id', in the order of the model's classes, and 'name'. A data set's own annotation
      file may have other ids.
    - Detection: ``predictions.json``, COCO results with 'image_id', 'category_id', 'bbox' (x, y, width,
      height), 'score' and perhaps 'segmentation' (RLE). ``COCO('images.json').loadRes('predictions.json')``
      reads it.
    - Classification: ``predictions.json``, for every image 'image_id', 'file_name' and 'predictions', the
      best first, with 'label', 'name' and 'score'.
    - Panoptic segmentation: ``segments/NAME.png`` and ``predictions.json``, COCO's panoptic results.
      Colours of the PNG are ids, red + 256 green + 65536 blue, and black is no segment. Each of the
      'annotations' has 'segments_info' with 'id', 'category_id' and 'area'.
    - Semantic segmentation: ``labels/NAME.png``, the category id of every pixel, in 8 bits, or in 16 if
      there are more than 256. If the data set has ``reduce_zero_label``, as ADE20K, ids begin at 1, because
      0 in its files means other things and is never predicted. Otherwise they begin at 0. For a frame of a
      video ``labels/NAME/000000.png``.

    The JSON files are written when the context ends, also after an exception.

    Args:
        out: The folder.
        inferencer: The inferencer that predicts.
        info: Information about the run, for images.json.

    Raises:
        ImageError: If a video of this size or frame rate cannot be written.
        OSError: If a file cannot be written.
    """

    def __init__(self, out: Path, inferencer: Inferencer, info: dict[str, Any]) -> None:
        self.out = out
        self.inferencer = inferencer
        first = inferencer.first_category_id
        self._index: dict[str, Any] = dict(
            info=dict(info, task=inferencer.task),
            images=[],
            annotations=[],
            categories=[dict(id=first + i, name=str(name)) for i, name in enumerate(inferencer.classes)],
        )
        self._predictions: list[dict[str, Any]] = []
        self._video: cv2.VideoWriter | None = None
        self._video_source: Source | None = None

    def __enter__(self) -> 'PredictionWriter':
        return self

    def __exit__(self, *_: Any) -> None:
        self._end_video()
        self._write_json('images.json', self._index)
        if isinstance(self.inferencer, PanopticInferencer):
            self._write_json('predictions.json', dict(annotations=self._predictions))
        elif not isinstance(self.inferencer, SegmentationInferencer):
            self._write_json('predictions.json', self._predictions)

    def write(self, picture: Picture, sample: Any, overlay: np.ndarray) -> None:
        """Write the prediction for an image, or for the next frame of a video.

        Args:
            picture: The image or frame.
            sample: The prediction, as the inferencer returned it.
            overlay: The drawn prediction, (H', W', 3), RGB.
        """
        source = picture.source
        height, width = picture.image.shape[:2]
        image = dict(id=len(self._index['images']), file_name=source.file_name, width=width, height=height)
        if picture.frame is not None:
            image['frame'] = picture.frame
        self._write_overlay(picture, np.ascontiguousarray(overlay[..., ::-1]))
        self._index['info']['root'] = str(source.root)
        self._index['images'].append(image)

        first = self.inferencer.first_category_id
        if isinstance(self.inferencer, SegmentationInferencer):
            labels = self.inferencer.labels(sample) + first
            dtype = np.uint8 if first + len(self.inferencer.classes) <= 256 else np.uint16
            mmcv.imwrite(labels.astype(dtype), str(self._file('labels', picture)))
        elif isinstance(self.inferencer, PanopticInferencer):
            self._write_segments(self.inferencer, picture, sample, image['id'])
        elif isinstance(self.inferencer, DetectionInferencer):
            for record in self.inferencer.records(sample):
                category = first + record.pop('label')
                del record['name']
                self._predictions.append(dict(image_id=image['id'], category_id=category, **record))
        else:
            records = self.inferencer.records(sample)
            entry = dict(image_id=image['id'], file_name=source.file_name, predictions=records)
            self._predictions.append(entry)

    def _write_segments(
        self, inferencer: PanopticInferencer, picture: Picture, sample: Any, image_id: int
    ) -> None:
        """Write an image's segments, numbered from 1 on."""
        found = inferencer.segments(sample)
        ids, infos = np.zeros_like(found), []
        for number, record in enumerate(inferencer.records(sample), 1):
            inside = found == record['id']
            ids[inside] = number
            category = inferencer.first_category_id + record['label']
            infos.append(dict(id=number, category_id=category, area=int(inside.sum())))
        path = self._file('segments', picture)
        mmcv.imwrite(id2rgb(ids)[..., ::-1], str(path))
        name = str(path.relative_to(self.out / 'segments'))
        self._predictions.append(dict(image_id=image_id, file_name=name, segments_info=infos))

    def _file(self, kind: str, picture: Picture) -> Path:
        """Return the path of a picture's PNG in a subfolder."""
        frame = '' if picture.frame is None else f'/{picture.frame:06d}'
        return self.out / kind / f'{picture.source.name}{frame}.png'

    def _write_overlay(self, picture: Picture, overlay: np.ndarray) -> None:
        path = self.out / 'overlays' / picture.source.name
        if picture.frame is None:
            mmcv.imwrite(overlay, f'{path}.png')
            return
        if picture.source != self._video_source:
            self._end_video()
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width = overlay.shape[:2]
            codec = cv2.VideoWriter.fourcc(*'mp4v')
            self._video = cv2.VideoWriter(f'{path}.mp4', codec, picture.fps, (width, height))
            if not self._video.isOpened():
                raise ImageError(
                    f'cannot write a video of {width} x {height} pixels at {picture.fps} frames per second'
                )
            self._video_source = picture.source
        self._video.write(overlay)

    def _end_video(self) -> None:
        if self._video is not None:
            self._video.release()

    def _write_json(self, name: str, content: Any) -> None:
        (self.out / name).write_text(json.dumps(content) + '\n')
