"""Finding images and videos, and naming their results."""

import pytest

from revcol_mm.apis.image_files import find_sources


@pytest.fixture
def folder(tmp_path):
    for path in ('a/x.jpg', 'b/x.jpg', 'b/c/x.jpg', 'b/out/overlays/x.png', 'b/notes.txt'):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path


def names(inputs, leave_out=None):
    return [source.name for source in find_sources([str(each) for each in inputs], leave_out)]


def test_sources_are_found_once_and_results_are_left_out(folder):
    inputs = (folder / 'a/../b', folder / 'a' / '*.jpg', folder / 'a/x.jpg', folder / 'b/notes.txt')
    assert names(inputs, folder / 'b/out') == ['b/c/x', 'b/x', 'a/x', 'b/notes']


def test_sources_below_the_current_folder_are_found(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert names(['b']) == ['c/x', 'out/overlays/x', 'x']


@pytest.mark.parametrize('other', ['x.png', 'c', 'c.png'])
def test_names_keep_suffixes_where_results_would_collide(other, folder):
    """Such as b/x.jpg with b/x.png, or a file called as the folder for the results of b/c/x.jpg."""
    if other == 'c':
        (folder / 'b/c.jpg').touch()
    elif other == 'c.png':
        (folder / 'b/c').rename(folder / 'b/x.png')
    else:
        (folder / 'b/x.png').touch()
    found = names([folder / 'b'], folder / 'b/out')
    assert len(set(found)) == 3 - (other == 'c.png') and all(
        name.endswith(('.jpg', '.png')) for name in found
    )
