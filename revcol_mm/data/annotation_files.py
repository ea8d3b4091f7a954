"""Check annotation files while pycocotools reads them."""

from contextlib import contextmanager
from typing import Iterator

from .coco_content import check_coco_content
from .coco_file import CocoFile
from .findings import report


@contextmanager
def annotation_files(strict: bool = True) -> Iterator[dict[str, CocoFile]]:
    """Check every annotation file that pycocotools reads inside of this context.

    MMDetection's data sets read their annotation file once, and delete its content. Reading hundreds of
    megabytes a second time would take too long. Data sets have a class attribute ``COCOAPI`` for another
    reader, but metrics do not, so ``COCO.__init__`` is patched for both.

    Args:
        strict: Whether to call :func:`report` on the findings at the end of the context, also if an exception
            is raised in it, which they may explain.

    Yields:
        The files by path, added as they are read.

    Raises:
        ValueError: If a file is not an annotation file. The message has its path.
        PreflightError: If ``strict``, and there are errors.
    """
    files = {}
    try:
        from pycocotools.coco import COCO
    except ImportError:  # without pycocotools, no data set reads such files
        yield files
        return
    read = COCO.__init__

    def read_and_check(self: COCO, annotation_file: str | None = None) -> None:
        failure = None
        try:
            read(self, annotation_file)
        except Exception as error:  # anything may be raised for a file that is not an annotation file
            failure = error
        try:
            if annotation_file is not None and self.dataset:
                files[annotation_file] = check_coco_content(annotation_file, self.dataset)
        except Exception as error:  # values may have any type
            failure = failure or error
        if failure is not None:
            raise ValueError(f'{annotation_file}: {type(failure).__name__}: {failure}') from failure

    COCO.__init__ = read_and_check
    try:
        yield files
    except Exception:  # of any type: the findings may say why
        _report(files, strict)
        raise
    finally:
        COCO.__init__ = read
    _report(files, strict)


def _report(files: dict[str, CocoFile], strict: bool) -> None:
    if strict:
        report(finding for file in files.values() for finding in file.findings)
