"""Checks that no pinned version has a known vulnerability.

The list contains the advisories known when it was last edited. `make audit` asks PyPI for new ones, which
must be added here together with the pins that fix them.
"""

import re

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from .subprocesses import REPO

REQUIREMENTS = sorted(path.name for path in REPO.glob('requirements*.txt'))
# Package, advisory and affected versions, as alternative specifiers.
ADVISORIES = [
    ('babel', 'CVE-2021-42771', ['<2.9.1']),
    ('certifi', 'CVE-2023-37920', ['>=2015.4.28,<2023.7.22']),
    ('certifi', 'CVE-2024-39689', ['>=2021.5.30,<2024.7.4']),
    ('filelock', 'CVE-2025-68146', ['<3.20.1']),
    ('fonttools', 'CVE-2023-45139', ['>=4.28.2,<4.43.0']),
    ('fonttools', 'CVE-2025-66034', ['>=4.33.0,<4.60.2']),
    ('h11', 'CVE-2025-43859', ['<0.16.0']),
    ('idna', 'CVE-2024-3651', ['<3.7']),
    ('jinja2', 'CVE-2024-22195', ['<3.1.3']),
    ('jinja2', 'CVE-2024-34064', ['<3.1.4']),
    ('jinja2', 'CVE-2024-56201', ['<3.1.5']),
    ('jinja2', 'CVE-2024-56326', ['<3.1.5']),
    ('jinja2', 'CVE-2025-27516', ['<3.1.6']),
    ('joblib', 'CVE-2022-21797', ['<1.2.0']),
    ('mpmath', 'CVE-2021-29063', ['<1.3.0']),
    ('numpy', 'CVE-2021-34141', ['<1.22']),
    ('onnx', 'CVE-2024-27318', ['<1.16.0']),
    ('onnx', 'CVE-2024-5187', ['<1.16.2']),
    ('opencv-python', 'CVE-2023-4863', ['<4.8.1.78']),
    ('opencv-python', 'CVE-2025-53644', ['>=4.10,<4.12']),
    ('pillow', 'CVE-2023-44271', ['<10.0.0']),
    ('pillow', 'CVE-2023-4863', ['<10.0.1']),
    ('pillow', 'CVE-2023-50447', ['<10.2.0']),
    ('pillow', 'CVE-2024-28219', ['<10.3.0']),
    ('pillow', 'CVE-2025-48379', ['>=11.2.0,<11.3.0']),
    ('pillow', 'CVE-2026-25990', ['>=10.3.0,<12.1.1']),
    ('protobuf', 'CVE-2025-4565', ['<4.25.8', '>=5.26,<5.29.5', '>=6.30,<6.31.1']),
    ('psutil', 'CVE-2019-18874', ['<5.6.6']),
    ('pygments', 'CVE-2022-40896', ['<2.15.1']),
    ('pyyaml', 'CVE-2020-14343', ['<5.4']),
    ('requests', 'CVE-2023-32681', ['>=2.3.0,<2.31.0']),
    ('requests', 'CVE-2024-35195', ['<2.32.0']),
    ('requests', 'CVE-2024-47081', ['<2.32.4']),
    ('scikit-learn', 'CVE-2024-5206', ['<1.5.0']),
    ('setuptools', 'CVE-2022-40897', ['<65.5.1']),
    ('setuptools', 'CVE-2024-6345', ['<70.0']),
    ('setuptools', 'CVE-2025-47273', ['<78.1.1']),
    ('torch', 'CVE-2022-45907', ['<1.13.1']),
    ('torch', 'CVE-2025-32434', ['<2.6.0']),
    ('torch', 'CVE-2026-24747', ['<2.10.0']),
    ('tqdm', 'CVE-2024-34062', ['>=4.4.0,<4.66.3']),
    ('urllib3', 'CVE-2023-43804', ['<1.26.17', '>=2.0.0,<2.0.6']),
    ('urllib3', 'CVE-2023-45803', ['<1.26.18', '>=2.0.0,<2.0.7']),
    ('urllib3', 'CVE-2024-37891', ['<1.26.19', '>=2.0.0,<2.2.2']),
    ('urllib3', 'CVE-2025-50181', ['<2.5.0']),
    ('urllib3', 'CVE-2025-50182', ['>=2.2.0,<2.5.0']),
    ('urllib3', 'CVE-2025-66418', ['>=1.24,<2.6.0']),
    ('urllib3', 'CVE-2025-66471', ['>=1.0,<2.6.0']),
    ('urllib3', 'CVE-2026-21441', ['>=1.22,<2.6.3']),
    ('uv', 'CVE-2025-54368', ['<0.8.6']),
    ('werkzeug', 'CVE-2024-34069', ['<3.0.3']),
    ('werkzeug', 'CVE-2024-49766', ['<3.0.6']),
    ('werkzeug', 'CVE-2024-49767', ['<3.0.6']),
    ('werkzeug', 'CVE-2025-66221', ['<3.1.4']),
    ('werkzeug', 'CVE-2026-21860', ['<3.1.5']),
    ('zipp', 'CVE-2024-5569', ['<3.19.1']),
]


def pins(name):
    """Return the package and the version of every pin, including those for other Pythons and systems."""
    lines = (REPO / name).read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith('#')]
    return [(canonicalize_name(pin.name), str(pin.specifier).removeprefix('==')) for pin in pinned]


def advisories_for(package, version):
    return [
        advisory
        for name, advisory, affected in ADVISORIES
        if name == package
        and any(SpecifierSet(each).contains(version, prereleases=True) for each in affected)
    ]


def test_every_requirements_file_pins_versions():
    assert len(REQUIREMENTS) == 3
    for name in REQUIREMENTS:
        assert len(pins(name)) > 50 and all(re.fullmatch(r'[\w.]+', version) for _, version in pins(name))


@pytest.mark.parametrize('name', REQUIREMENTS)
def test_no_pin_has_a_known_vulnerability(name):
    assert {pin: found for pin in pins(name) if (found := advisories_for(*pin))} == {}


@pytest.mark.parametrize(
    'package, version, advisory',
    [
        ('torch', '2.9.1', 'CVE-2026-24747'),
        ('pillow', '12.1.0', 'CVE-2026-25990'),
        ('protobuf', '5.29.4', 'CVE-2025-4565'),
        ('setuptools', '78.1.0', 'CVE-2025-47273'),
    ],
)
def test_vulnerable_versions_are_detected(package, version, advisory):
    assert advisory in advisories_for(package, version)


def test_advisories_are_sorted_and_of_pinned_packages():
    pinned = {package for name in REQUIREMENTS for package, _ in pins(name)}
    listed = [(package, advisory) for package, advisory, _ in ADVISORIES]
    assert listed == sorted(set(listed)) and {package for package, _ in listed} <= pinned
    assert all(re.fullmatch(r'CVE-\d{4}-\d{4,}', advisory) for _, advisory in listed)
