"""tools/convert_voc.py writes the boxes that MMDetection reads, and reports what it leaves out."""

import json
import re
import shutil

import pytest
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from revcol_mm.data.coco_content import check_coco_content

from .subprocesses import REPO, run
from .test_documentation import blocks

TOOL = 'tools/convert_voc.py'


def element(name, box, difficult=0):
    corners = ''.join(f'<{key}>{value}</{key}>' for key, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box))
    return f'<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>'


def write(root, name, *objects, size=(40, 30), image=(40, 30)):
    width, height = size
    text = f'<size><width>{width}</width><height>{height}</height><depth>3</depth></size>' + ''.join(objects)
    (root / f'Annotations/{name}.xml').write_text(f'<annotation>{text}</annotation>')
    Image.new('RGB', image, 50 * ord(name[-1]) % 251).save(root / f'JPEGImages/{name}.jpg')


@pytest.fixture
def voc(tmp_path):
    """A valid data set in VOC's layout."""
    root = tmp_path / 'voc'
    for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    write(root, 'a', element('cat', (1, 1, 40, 30)), element('dog', ('2.7', '3.2', '9.9', '11'), difficult=1))
    write(root, 'b', element('dog', (5, 6, 20, 21)))
    write(root, 'c')
    (root / 'ImageSets/Main/train.txt').write_text('a\nb\n')
    (root / 'ImageSets/Main/val.txt').write_text('c\n')
    (root / 'ImageSets/Main/cat_train.txt').write_text('a  1\nb -1\n')  # a list of one class
    return root


def converted(voc, split='train'):
    return json.loads((voc.parent / f'out/{split}.json').read_text())


def convert(call_tool, voc, *arguments):
    return call_tool(TOOL, voc, '--out', voc.parent / 'out', *arguments)


def test_boxes_are_those_that_mmdetection_reads(voc, call_tool):
    printed, error = convert(call_tool, voc)
    assert not error
    assert sorted(path.name for path in (voc.parent / 'out').iterdir()) == ['train.json', 'val.json']
    assert "classes = ('cat', 'dog')" in printed
    assert f"dataset = dict(data_prefix=dict(img='{voc}/JPEGImages/'))" in printed
    common = dict(metainfo=dict(classes=('cat', 'dog')), serialize_data=False, test_mode=True)
    with DefaultScope.overwrite_default_scope('mmdet'):
        ann_file = str(voc.parent / 'out/train.json')
        ours = DATASETS.build(dict(type='CocoDataset', ann_file=ann_file, data_prefix=dict(img=''), **common))
        ann_file, prefix = 'ImageSets/Main/train.txt', dict(sub_data_root='')
        theirs = DATASETS.build(
            dict(type='XMLDataset', data_root=str(voc), ann_file=ann_file, data_prefix=prefix, **common)
        )
    assert len(ours) == len(theirs) == 2
    for index in range(2):
        assert ours[index]['instances'] == theirs[index]['instances']
    assert converted(voc)['annotations'][1] == dict(
        id=2, image_id=1, category_id=2, bbox=[1, 2, 7, 8], area=56, iscrowd=1
    )
    assert converted(voc, 'val')['images'] == [dict(id=1, file_name='c.jpg', width=40, height=30)]


@pytest.mark.parametrize(
    'node, message, num_left',
    [
        (element('cat', (9, 9, 9, 9)), r'1 empty boxes; .*\n.*a\.xml: cat \[9, 9, 9, 9\]', 0),
        (element('cat', (9, 9, 5, 12)), '1 empty boxes', 0),
        (element('cat', (90, 9, 95, 12)), '1 boxes outside of their image', 0),
        (element('cat', (0, 1, 45, 12)), '1 boxes that reach beyond.*clipped', 1),
        (element('cat', ('x', 1, 5, 12)), '1 objects without a box of four', 0),
        (element('cat', ('nan', 1, 5, 12)), '1 objects without a box of four', 0),
        ('<object><name>cat</name></object>', '1 objects without a box', 0),
        (element('', (1, 1, 5, 12)), '1 objects without a name', 0),
        (element('cow', (1, 1, 5, 12)), r'1 objects whose class is not in --classes.*\n  cow', 0),
    ],
)
def test_invalid_objects_are_reported(node, message, num_left, voc, call_tool):
    write(voc, 'a', element('cat', (1, 1, 40, 30)), node)
    printed, error = convert(call_tool, voc, '--classes', 'cat', 'dog')
    assert not error and re.search(message, printed)
    assert len([each for each in converted(voc)['annotations'] if each['image_id'] == 1]) == 1 + num_left


def test_the_data_check_reports_what_the_conversion_left_out(voc, call_tool):
    write(voc, 'a', element('cat', (1, 1, 40, 30)), element('cat', (9, 9, 9, 9)))
    convert(call_tool, voc)
    (text,) = converted(voc)['info']['left_out']
    assert re.fullmatch(r'empty box: .*a\.xml: cat \[9, 9, 9, 9\]', text)
    assert converted(voc, 'val')['info'] == dict(left_out=[])
    (finding,) = check_coco_content('train.json', converted(voc)).findings
    assert (finding.severity, finding.count, finding.examples) == ('warning', 1, [text])
    for info in (None, [], dict(), dict(left_out=3), dict(left_out=[])):
        assert not list(check_coco_content('train.json', {**converted(voc), 'info': info}).findings)


def test_a_box_beyond_the_image_is_clipped(voc, call_tool):
    write(voc, 'a', element('cat', (0, 1, 45, 12)))
    convert(call_tool, voc)
    assert converted(voc)['annotations'][0]['bbox'] == [0, 0, 40, 11]


@pytest.mark.parametrize(
    'damage, message',
    [
        (
            lambda root: (root / 'Annotations/a.xml').write_text('<annotation><obj'),
            r'cannot be read; .*\n.*a\.xml: it is not XML',
        ),
        (lambda root: (root / 'Annotations/a.xml').unlink(), r'without an XML file; .*\n.*a\.xml'),
        (lambda root: (root / 'JPEGImages/a.jpg').unlink(), r'images that are missing; .*\n  a'),
        (lambda root: (root / 'JPEGImages/a.jpg').write_text('x'), r'cannot be read; .*\n.*a\.xml'),
    ],
)
def test_unreadable_annotations_are_left_out_with_their_images(damage, message, voc, call_tool):
    damage(voc)
    printed, error = convert(call_tool, voc)
    assert not error and re.search(message, printed)
    assert [each['file_name'] for each in converted(voc)['images']] == ['b.jpg']


def test_a_wrong_size_is_replaced_by_that_of_the_image(voc, call_tool):
    write(voc, 'a', element('cat', (1, 1, 5, 5)), size=(30, 40))
    printed, _ = convert(call_tool, voc)
    assert re.search(r'1 sizes that differ .*\n.*a\.xml: 30 x 40, its image has 40 x 30', printed)
    assert converted(voc)['images'][0]['width'] == 40


def test_without_lists_all_annotations_become_one_file(voc, call_tool):
    (voc / 'ImageSets').rename(voc / 'lists')
    convert(call_tool, voc)
    assert len(converted(voc, 'all')['images']) == 3


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--splits', 'tset'], r"no list .*tset\.txt; there are .*'train', 'val'"),
        (['--splits', 'cat_train'], 'a list of one class'),
        (['--classes', 'sheep', 'cow'], 'no object has a class of --classes, sheep, cow; there are cat, dog'),
        (['--classes', 'cat', 'cat'], '--classes has a duplicate: cat cat'),
    ],
)
def test_a_wrong_option_is_an_error(arguments, message, voc, call_tool):
    _, error = convert(call_tool, voc, *arguments)
    assert re.fullmatch(f'error: .*{message}.*', error) and not (voc.parent / 'out').exists()


def test_class_that_only_other_splits_have_keeps_its_place(voc, call_tool):
    (voc / 'ImageSets/Main/one.txt').write_text('b\n')
    printed, error = convert(call_tool, voc, '--splits', 'one', '--classes', 'cat', 'dog')
    assert not error and '1 classes that no object has:\n  cat\n' in printed
    assert [each['category_id'] for each in converted(voc, 'one')['annotations']] == [2]


def test_images_whose_names_differ_in_the_suffix_are_reported(voc, call_tool):
    Image.new('RGB', (40, 30)).save(voc / 'JPEGImages/a.png')
    printed, error = convert(call_tool, voc)
    assert (
        not error and '1 files with the same name as another image, which they replace:\n  a.png' in printed
    )
    assert converted(voc)['images'][0]['file_name'] == 'a.png'


def test_a_folder_without_annotations_is_an_error(tmp_path, call_tool):
    _, error = call_tool(TOOL, tmp_path, '--out', tmp_path)
    assert error == f'error: no folder {tmp_path / "Annotations"}'


@pytest.mark.slow
def test_the_tutorial_s_commands_and_config_run(voc, tmp_path):
    for name in 'abc':  # MMDetection leaves out images of less than 32 pixels
        objects = element('cat', (1, 1, 40, 30)), element('dog', (5, 6, 20, 21))
        write(voc, name, *objects, size=(64, 48), image=(64, 48))
    page = REPO / 'docs/tutorials/detection.md'
    shutil.copytree(REPO / 'configs', tmp_path / 'configs')
    shutil.copytree(REPO / 'tools', tmp_path / 'tools')
    shutil.copytree(voc, tmp_path / 'data/my_voc')
    (config,) = blocks(page, 'py')
    (tmp_path / config.splitlines()[0].removeprefix('# ')).write_text(config)
    convert, check = (line.split()[1:] for block in blocks(page, 'sh') for line in block.splitlines())
    printed = run(*convert, cwd=tmp_path)
    assert re.search(r"^classes = \('cat', 'dog'\)$", config, re.M) and "classes = ('cat', 'dog')" in printed
    assert '0 kinds of errors, 0 of warnings' in run(*check, cwd=tmp_path)
