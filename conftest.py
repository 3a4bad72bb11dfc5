"""Strict by default: four devices, no silent broadcasting between ranks.

It stands beside the package so that its doctests run under it too.
"""

import os
import pathlib
import tempfile
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

_CONFIGS = pathlib.Path(__file__).parent / 'configs'
_FOLDER = tempfile.TemporaryDirectory(prefix='retrieval_jax_')

# The user's own cache stays as it is.
os.environ['RETRIEVAL_JAX_CACHE'] = os.path.join(_FOLDER.name, 'data')

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')

# These also for the processes that tests start. Compiling is most of what tests
# cost: the programs are small, so they are optimised little, and since tests
# that train run the same few again and again, what is compiled once is kept.
# XLA cuts a program into up to 32 parts for as many threads, which costs small
# ones a third of their time. Its older emitters of fused loops, which later
# versions have no more, need less than half of the newer ones' time.
_FLAGS = ['--xla_cpu_parallel_codegen_split_count=1']
if jax.__version_info__ < (0, 11):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_FLAGS])
for _name, _value in (
  ('jax_platforms', 'cpu'),
  ('jax_disable_most_optimizations', True),
  ('jax_compilation_cache_dir', os.path.join(_FOLDER.name, 'compiled')),
  ('jax_persistent_cache_min_compile_time_secs', 0.0),
):
  jax.config.update(_name, _value)
  os.environ[_name.upper()] = str(_value)

# The scripts that recorded the golden values import the peers.
collect_ignore = ['tests/golden']


@pytest.fixture(scope='module', autouse=True)
def programs_are_let_go():
  """Drops the compiled programs once there are many, after a test file.

  Each takes memory maps of the process, of which Linux gives 65,530; beyond
  these the compiler crashes. Those that are needed again come from the folder
  above.
  """
  yield
  maps = pathlib.Path('/proc/self/maps')
  if not maps.exists() or maps.read_bytes().count(b'\n') > 20_000:
    jax.clear_caches()


@pytest.fixture
def no_drawings(monkeypatch):
  """Leaves the drawings of reports blank: they are half of a small run's time.

  What is in them is tested where it is drawn: `report_test.py` and its like.
  """
  from retrieval_jax.training import report_page

  monkeypatch.setattr(report_page, 'picture_tag', lambda draw, alt: '')


@pytest.fixture(scope='session')
def example_folder(tmp_path_factory):
  """A folder with a run in `runs/circle` and the images that examples name."""
  from retrieval_jax import data
  from retrieval_jax.training import config, loop, report_page

  folder = tmp_path_factory.mktemp('example')
  settings = config.load(
    str(pathlib.Path(__file__).parent / 'configs/circle.py')
  )
  config.override(settings, 'num_train_steps', '2')
  with mock.patch.object(report_page, 'picture_tag', lambda draw, alt: ''):
    loop.train_and_evaluate(settings, str(folder / 'runs' / 'circle'))
  query = data.load_dataset('mnist_5k').tests['test'].query
  names = ('query.png', 'a.png', 'b.png', 'c.png')
  names += tuple(f'photos/{name}' for name in names[1:])
  rows = [*range(len(names)), *range(10, len(query), 20)]
  names += tuple(
    f'labelled/{query.labels[i]}/{i}.png' for i in rows[len(names) :]
  )
  images = query.images_at(np.array(rows))
  for name, image in zip(names, images, strict=True):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0]).save(folder / name)
  return folder


@pytest.fixture(autouse=True)
def examples_run_where_their_files_are(request, monkeypatch):
  """Runs the doctest of `retrieval_jax.load` beside a run."""
  if request.node.name in ('retrieval_jax.load', '__init__.load'):
    monkeypatch.chdir(request.getfixturevalue('example_folder'))
