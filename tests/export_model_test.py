"""A run for other programs: its weights, and its embedder without us."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import retrieval_jax
from retrieval_jax import export_model
from retrieval_jax.models import pretrained
from retrieval_jax.training import checkpoint, initialising, results
from retrieval_jax.training import config as config_lib
from retrieval_jax.training.experiment import make_experiment

ROOT = pathlib.Path(__file__).parents[1]

_ELSEWHERE = """
import sys
import jax, jax.export
import numpy as np
folder = sys.argv[1]
images = np.load(folder + '/images.npy')
for name, sizes in (('embedder', (1, 5)), ('embedder_batch_5', (5,))):
  with open(f'{folder}/out/{name}.jax_export', 'rb') as file:
    exported = jax.export.deserialize(bytearray(file.read()))
  for size in sizes:
    found = np.asarray(exported.call(images[:size]))
    np.save(f'{folder}/{name}_{size}.npy', found)
foreign = {name.partition('.')[0] for name in sys.modules}
assert not foreign & {'retrieval_jax', 'flax', 'orbax', 'safetensors'}
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with a run of random weights, and `out`, its export."""
  folder = tmp_path_factory.mktemp('place')
  config = config_lib.load(str(ROOT / 'configs/circle.py'))
  for key, value in {
    'model.normalization': 'batch',
    'model.pooling': 'average',
    'eval.scales': '(1.0, 0.7)',
  }.items():
    config_lib.override(config, key, value)
  experiment = make_experiment(config)
  workdir = str(folder / 'run')
  checkpoint.open_workdir(workdir)
  results.describe_run(workdir, config, experiment.dataset)
  state = experiment.stages[0].initial_state()
  with checkpoint.Checkpoints(workdir) as checkpoints:
    checkpoints.save(state)
  status = export_model.main(
    [f'--workdir={workdir}', f'--output={folder}/out', '--batch_size=5']
  )
  assert status == 0
  return folder, experiment, state


def test_embeddings_of_a_process_with_jax_alone(place):
  folder, _, _ = place
  model = retrieval_jax.load(str(folder / 'run'))
  shape = (5, *model.preprocessing.image_shape)
  images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
  np.save(folder / 'images.npy', images)
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  subprocess.run(
    [sys.executable, '-c', _ELSEWHERE, str(folder)],
    cwd=folder,
    env=environment,
    check=True,
    timeout=300,
  )
  expected = np.asarray(model.embed_prepared(images))[:5]
  for name in ('embedder_1', 'embedder_5', 'embedder_batch_5_5'):
    found = np.load(folder / f'{name}.npy')
    assert found.dtype == np.float32
    assert found.shape == (int(name[-1]), model.embedding_dim)
    np.testing.assert_allclose(found, expected[: len(found)], atol=1e-5)


def test_what_is_written(place):
  folder, _, state = place
  assert sorted(os.listdir(folder / 'out')) == [
    'embedder.jax_export',
    'embedder_batch_5.jax_export',
    'model.json',
    'model.safetensors',
  ]
  about = json.loads((folder / 'out' / 'model.json').read_text())
  assert about['model'] == 'convnet'
  assert about['image_shape'] == [28, 28, 1]
  assert about['embedding_dim'] == 50
  assert about['step'] == 0
  assert about['platforms'] == ['cpu', 'cuda', 'tpu']
  assert str(folder) not in (folder / 'out' / 'model.json').read_text()
  tensors = safetensors.numpy.load_file(folder / 'out' / 'model.safetensors')
  expected = pretrained.flat_names(
    {'params': state.params['embedder'], 'batch_stats': state.batch_stats}
  )
  assert tensors.keys() == expected.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(tensor, expected[name])


def test_the_example_of_the_docs(place, tmp_path, monkeypatch, capsys):
  folder, _, _ = place
  os.symlink(folder / 'out', tmp_path / 'exported')
  monkeypatch.chdir(tmp_path)
  text = (ROOT / 'docs' / 'pretrained.md').read_text()
  (example,) = re.findall(r'```python\n(import.*?)```', text, flags=re.DOTALL)
  exec(example, {})
  assert capsys.readouterr().out == '(3, 50)\n'


def test_the_weights_can_be_started_from(place):
  folder, experiment, state = place
  config = experiment.config.copy_and_resolve_references()
  config.model.pretrained = str(folder / 'out')
  config.seed = 1
  weights = initialising.read_pretrained(config)
  assert weights.normalization == ((0.1307,), (0.3081,))
  fresh = state.replace(
    params={
      **state.params,
      'embedder': {
        name: {'kernel': np.zeros(3)} if name != 'backbone' else tree
        for name, tree in state.params['embedder'].items()
      },
    }
  )
  found = initialising.from_pretrained(fresh, weights, 'convnet')
  for ours, theirs in (
    (
      found.params['embedder']['backbone'],
      state.params['embedder']['backbone'],
    ),
    (found.batch_stats, state.batch_stats),
  ):
    ours, theirs = pretrained.flat_names(ours), pretrained.flat_names(theirs)
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
      np.testing.assert_array_equal(leaf, theirs[name])


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--output={}/out'], ['--output', 'exists', 'choose another']),
    (['--output={}/gone/out'], ['--output', 'no folder', 'gone']),
    (['--output={}/new', '--step=7'], ['no checkpoint of step 7']),
    (['--output={}/new', '--platforms=cpu,abacus'], ['abacus', 'cuda, rocm']),
    (['--output={}/new', '--platforms=,'], ['none', 'cuda, rocm']),
    (['--output={}/new', '--platforms='], ['--platforms', "'' is not allowed"]),
    (['--output={}/new', '--batch_size=0'], ['--batch_size', 'at least 1']),
    (['--output={}/new', '--overwrite'], ['--overwrite', 'known']),
  ],
)
def test_mistakes(place, capsys, flags, words):
  folder, _, _ = place
  before = sorted(os.listdir(folder))
  flags = [flag.format(folder) for flag in flags]
  assert export_model.main([f'--workdir={folder}/run', *flags]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  for word in words:
    assert word in line
  assert sorted(os.listdir(folder)) == before


def test_not_a_run(tmp_path, capsys):
  flags = [f'--workdir={tmp_path}', f'--output={tmp_path}/out']
  assert export_model.main(flags) == 2
  assert 'not the workdir of a run' in capsys.readouterr().err
