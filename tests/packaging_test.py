"""The package that `pip install .` builds: the library and its requirements."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from packaging import requirements

ROOT = pathlib.Path(__file__).parents[1]

pytest.importorskip(
  'setuptools', minversion='77', reason='./launch.sh test installs setuptools'
)


def read_requirements(name: str) -> set[str]:
  lines = (ROOT / name).read_text().splitlines()
  return {
    str(requirements.Requirement(line))
    for line in lines
    if line and not line.startswith('#')
  }


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  # In a copy: setuptools leaves its build folders beside the sources.
  path = tmp_path_factory.mktemp('wheel')
  ignore = shutil.ignore_patterns(
    '.*', 'runs', 'docs', '__pycache__', 'build', '*.egg-info'
  )
  shutil.copytree(ROOT, path / 'source', ignore=ignore)
  build = [sys.executable, '-m', 'pip', 'wheel', '--no-index', '--no-deps']
  build += ['--no-build-isolation', '--quiet', '--wheel-dir', path]
  subprocess.run([*build, path / 'source'], check=True, timeout=300)
  (file,) = path.glob('*.whl')
  with zipfile.ZipFile(file) as archive:
    yield archive


def test_wheel_holds_the_library_and_nothing_else(wheel):
  sources = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / 'retrieval_jax').rglob('*.py')
  }
  packed = {n for n in wheel.namelist() if '.dist-info/' not in n}
  assert packed == sources
  assert any(name.endswith('licenses/LICENSE') for name in wheel.namelist())


def test_wheel_states_the_requirement_files(wheel):
  (name,) = (n for n in wheel.namelist() if n.endswith('.dist-info/METADATA'))
  lines = wheel.read(name).decode().splitlines()
  stated = [
    requirements.Requirement(line.removeprefix('Requires-Dist: '))
    for line in lines
    if line.startswith('Requires-Dist: ')
  ]
  required = {str(r) for r in stated if 'extra' not in str(r.marker)}
  assert required == read_requirements('requirements-cpu.txt')
  assert 'Requires-Python: <3.14,>=3.11' in lines
