"""A whole run: trained, measured, stopped, continued, refused."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import retrieval_jax
from retrieval_jax import data, models
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import protocols
from retrieval_jax.training import checkpoint, evaluation, loop, reporting
from retrieval_jax.training.experiment import make_experiment

pytestmark = pytest.mark.usefixtures('no_drawings')

_CONFIGS = sorted(
  path.stem
  for path in (pathlib.Path(__file__).parents[2] / 'configs').glob('*.py')
  # Larger networks take larger images: official_configs_test.py.
  if path.stem
  not in ('default', 'fine_tuning', 'harry_landmarks', 'harry_small')
  and path.stem not in protocols.zero_shot.BENCHMARKS
)


def _assert_same_run(one, other):
  trees = [checkpoint.restore_variables(str(run)) for run in (one, other)]
  for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
    np.testing.assert_array_equal(a, b)


def _fail_at(monkeypatch, step, action):
  """Calls `action` when the batch of a step is made."""
  load_batch = data.TrainLoader.__call__

  def load(self, at):
    if at == step:
      action()
    return load_batch(self, at)

  monkeypatch.setattr(data.TrainLoader, '__call__', load)


@pytest.mark.parametrize(
  'name',
  [
    # One of each kind in the default suite: pairs, a test of new classes, a
    # sharded head, BatchNorm with an average of the weights. What a loss does
    # in a step is tested elsewhere for all.
    name
    if name in ('circle', 'zero_shot', 'partial_fc', 'harry_mnist')
    else pytest.param(name, marks=pytest.mark.slow)
    for name in _CONFIGS
  ],
)
def test_a_run_leaves_what_it_says(make_config, tmp_path, capsys, name):
  run = tmp_path / 'run'
  found = loop.train_and_evaluate(make_config(name), str(run))
  results = json.loads((run / 'results.json').read_text())
  assert results['step'] in ((3, 6) if name == 'zero_shot' else (6,))
  test = results['evaluations']['test']
  assert test['metrics'] == found
  assert all(0 <= value <= 1 for value in found.values())
  assert test['protocol']['num_queries'] == 40
  assert test['protocol']['gallery_size'] == 80
  assert '<html' in (run / 'report.html').read_text()
  assert 'precision_at_1' in capsys.readouterr().out
  files = os.listdir(run)
  assert any(name.startswith('events.out.tfevents') for name in files)
  rows = reporting.read_history(str(run))
  assert [r['step'] for r in rows if 'train/loss' in r] == [2, 4, 6]
  # With a validation set, the test set is not looked at until the end.
  watched = 'validation' if name == 'zero_shot' else 'test'
  evaluated = [r for r in rows if any(key.startswith('eval/') for key in r)]
  assert [r['step'] for r in evaluated] == [3, 6]
  for row in evaluated:
    assert f'eval/{watched}/precision_at_1' in row
    assert {key.split('/')[1] for key in row if '/' in key} == {watched}
  has_proxies = 'head' in checkpoint.restore_params(str(run))
  assert ('train/top_1_accuracy' in rows[0]) == has_proxies
  assert not [name for name in files if name.endswith('.tmp')]


def test_tensorboard_holds_scalars_image_and_hyperparameters(
  make_config, tmp_path
):
  from tensorboard.backend.event_processing import event_accumulator

  loop.train_and_evaluate(make_config('arcface'), str(tmp_path / 'run'))
  events = event_accumulator.EventAccumulator(
    str(tmp_path / 'run'), size_guidance={'tensors': 0}
  )
  events.Reload()
  tags = set(events.Tags()['tensors'])
  assert {
    'train/loss',
    'train/learning_rate',
    'train/gradient_norm',
    'train/embedding_norm',
    'train/images_per_second',
    'train/top_5_accuracy',
    'train/data_wait_share',
    'train/unreadable_images',
    'eval/test/mean_average_precision_at_r',
    'eval/gallery/test',
  } <= tags
  assert '_hparams_/session_start_info' in str(events.Tags())


_PHASES = {
  'optimizer__accumulate_steps': 2,
  'optimizer__head_only_steps': 2,
  'optimizer__ema_decay': 0.9,
  'optimizer__frozen': ('backbone/conv_0/.*',),
  'head__init': 'class_mean',
}


@pytest.mark.parametrize(
  'options', [{}, pytest.param(_PHASES, marks=pytest.mark.slow)]
)
def test_continued_equals_uninterrupted(
  make_config, tmp_path, monkeypatch, options
):
  # Cut off between two updates, if several steps make one.
  config = make_config(
    'arcface',
    data__classes_per_batch=8,
    checkpoint_every_steps=3 if options else 2,
    **options,
  )
  loop.train_and_evaluate(config, str(tmp_path / 'whole'))

  def crash():
    raise ConnectionError('power cut')

  with monkeypatch.context() as patch:
    _fail_at(patch, 5, crash)
    with pytest.raises(ConnectionError):
      loop.train_and_evaluate(config, str(tmp_path / 'cut'))
  with checkpoint.Checkpoints(str(tmp_path / 'cut')) as checkpoints:
    assert checkpoints.latest_step() < 6
  loop.train_and_evaluate(config, str(tmp_path / 'cut'))
  _assert_same_run(tmp_path / 'whole', tmp_path / 'cut')
  if options:
    with checkpoint.Checkpoints(str(tmp_path / 'cut')) as checkpoints:
      state = make_experiment(config).restore(checkpoints, 6)
    measured = checkpoint.restore_params(str(tmp_path / 'cut'))['embedder']
    jax.tree.map(
      np.testing.assert_array_equal, measured, state.averages['params']
    )
    trained = state.params['embedder']
    change = measured['projection']['kernel'] - trained['projection']['kernel']
    assert np.abs(change).max() > 0
  steps = [row['step'] for row in reporting.read_history(str(tmp_path / 'cut'))]
  whole = reporting.read_history(str(tmp_path / 'whole'))
  assert steps == [row['step'] for row in whole]


def test_sigterm_saves_and_the_run_goes_on(
  make_config, tmp_path, monkeypatch, caplog
):
  caplog.set_level('INFO')
  config = make_config(checkpoint_every_steps=100, eval_every_steps=100)
  loop.train_and_evaluate(config, str(tmp_path / 'whole'))
  with monkeypatch.context() as patch:
    _fail_at(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert loop.train_and_evaluate(config, str(tmp_path / 'cut')) == {}
  assert 'run again to go on' in caplog.text
  with checkpoint.Checkpoints(str(tmp_path / 'cut')) as checkpoints:
    assert 1 <= checkpoints.latest_step() < 6
  loop.train_and_evaluate(config, str(tmp_path / 'cut'))
  _assert_same_run(tmp_path / 'whole', tmp_path / 'cut')


@pytest.fixture
def finished_run(make_config, tmp_path, tmp_path_factory):
  """The workdir of a run of `make_config()`, trained once for all tests."""
  trained = tmp_path_factory.getbasetemp() / 'finished_run'
  if not trained.exists():
    loop.train_and_evaluate(make_config(), str(trained))
  return shutil.copytree(trained, tmp_path / 'finished_run')


def test_a_finished_run_says_so_and_evaluates(
  make_config, finished_run, caplog
):
  caplog.set_level('INFO')
  results = json.loads((finished_run / 'results.json').read_text())
  first = results['evaluations']['test']['metrics']
  changed = make_config(eval__metrics=('recall_at_5',), log_every_steps=1)
  again = loop.train_and_evaluate(changed, str(finished_run))
  assert 'the run is finished: step 6 of 6' in caplog.text
  assert set(again) == {'recall_at_5'}
  assert loop.evaluate(make_config(), str(finished_run)) == first


def test_another_config_is_refused(make_config, finished_run):
  before = (finished_run / 'results.json').read_text()
  other = make_config(seed=1, optimizer__learning_rate=0.5)
  with pytest.raises(
    InputError, match=r'optimizer.learning_rate 0.001 -> 0.5, seed 0 -> 1'
  ):
    loop.train_and_evaluate(other, str(finished_run))
  assert (finished_run / 'results.json').read_text() == before


@pytest.mark.parametrize(
  'overrides, words',
  [
    ({'data__classes_per_batch': 16, 'data__batch_size': 32}, 'at most 10'),
    ({'data__classes_per_batch': 5}, 'does not divide'),
    ({'data__batch_size': 96}, 'at most 80'),
    ({'data__batch_size': 18}, 'multiple of the 4 devices'),
  ],
)
def test_batches_that_cannot_be_leave_no_workdir(
  make_config, tmp_path, overrides, words
):
  with pytest.raises(InputError, match=words):
    loop.train_and_evaluate(make_config(**overrides), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_evaluate_without_a_run(make_config, tmp_path):
  with pytest.raises(InputError, match='not the workdir of a run'):
    loop.evaluate(make_config(), str(tmp_path))


def test_a_loss_that_is_not_finite_stops(make_config, tmp_path):
  config = make_config(
    'circle',
    optimizer__name='sgd',
    optimizer__learning_rate=1e30,
    optimizer__warmup_steps=2,
    num_train_steps=20,
    checkpoint_every_steps=1,
  )
  with pytest.raises(InputError, match=r'not finite at step \d+ .*circle'):
    loop.train_and_evaluate(config, str(tmp_path))
  for leaf in jax.tree.leaves(checkpoint.restore_params(str(tmp_path))):
    assert np.isfinite(leaf).all()
  assert not (tmp_path / 'results.json').exists()


def test_init_from_takes_what_fits(make_config, finished_run, tmp_path, caplog):
  caplog.set_level('INFO')
  config = make_config(
    'arcface',
    model__init_from=str(finished_run),
    num_train_steps=1,
    optimizer__learning_rate=1e-30,
  )
  loop.train_and_evaluate(config, str(tmp_path / 'second'))
  assert 'fresh: head/proxies' in caplog.text
  one, two = (
    checkpoint.restore_params(str(run))['embedder']
    for run in (finished_run, tmp_path / 'second')
  )
  for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
    np.testing.assert_array_equal(a, b)
  missing = make_config(model__init_from=str(tmp_path / 'nothing'))
  with pytest.raises(InputError, match='nothing is not the workdir'):
    loop.train_and_evaluate(missing, str(tmp_path / 'third'))


def test_load_embeds_as_the_evaluation_did(make_config, tmp_path, tiny_dataset):
  from PIL import Image

  config = make_config('cosface')
  loop.train_and_evaluate(config, str(tmp_path))
  model = retrieval_jax.load(str(tmp_path))
  images = tiny_dataset.tests['test'].query.images_at(np.arange(5))
  embeddings = model.embed(images)
  assert embeddings.shape == (5, 50)
  np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
  pictures = [Image.fromarray(image[..., 0]) for image in images]
  pictures[0].save(tmp_path / 'a.png')
  mixed = [str(tmp_path / 'a.png'), pictures[1], images[2], *pictures[3:]]
  np.testing.assert_allclose(model.embed(mixed), embeddings, atol=1e-6)
  np.testing.assert_allclose(
    model.embed(images, batch_size=2), embeddings, atol=1e-6
  )
  experiment = make_experiment(config)
  variables = checkpoint.restore_variables(str(tmp_path))
  from retrieval_jax.training import state as state_lib

  rows, readable = experiment.evaluator.embed(
    state_lib.replicate(
      {
        'params': variables['params']['embedder'],
        'batch_stats': variables['batch_stats'],
      }
    ),
    tiny_dataset.tests['test'].query,
  )
  assert rows.shape == (40, 50)
  assert readable.all()
  np.testing.assert_allclose(rows[:5], embeddings, atol=1e-6)
  with pytest.raises(InputError, match='not the workdir'):
    retrieval_jax.load(str(tmp_path / 'nothing'))


def test_validation_selects_the_weights_and_the_test_set_has_no_say(
  make_config, tmp_path, monkeypatch
):
  measured = []
  measure = evaluation.Evaluator.measure

  def watch(self, variables, groups, **options):
    found = measure(self, variables, groups, **options)
    # The second of three evaluations is made the best of the validation set,
    # and the third the best of the test set.
    for name, one in found.items():
      measured.append(name)
      better = {'validation': 2, 'test': 3}[name]
      value = 0.9 if measured.count(name) == better else 0.1
      one.result.metrics['mean_average_precision_at_r'] = value
    return found

  monkeypatch.setattr(evaluation.Evaluator, 'measure', watch)
  config = make_config(
    'arcface',
    data__validation='classes',
    eval_every_steps=2,
    num_train_steps=6,
  )
  loop.train_and_evaluate(config, str(tmp_path))
  # Of classes that the head does not know there is no accuracy.
  keys = {key for row in reporting.read_history(str(tmp_path)) for key in row}
  assert {key for key in keys if 'accuracy' in key} == {
    'train/top_1_accuracy',
    'train/top_5_accuracy',
  }
  assert measured == ['validation'] * 3 + ['test']
  results = json.loads((tmp_path / 'results.json').read_text())
  assert results['step'] == 4
  assert results['selection']['sets'] == ['validation']
  assert results['selection']['score'] == 0.9
  page = (tmp_path / 'report.html').read_text()
  assert 'weights of step 4, the best on validation (0.9000)' in page
  assert 'Metrics on the validation set' in page
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['4', '6']
  chosen, used = (
    checkpoint.restore_params(str(tmp_path), step) for step in (4, None)
  )
  for one, other in zip(*map(jax.tree.leaves, (chosen, used)), strict=True):
    np.testing.assert_array_equal(one, other)


def test_without_validation_nothing_is_selected(finished_run):
  results = json.loads((finished_run / 'results.json').read_text())
  assert results['selection']['sentence'] == (
    'weights of step 6, the last; none was selected'
  )
  assert os.listdir(finished_run / 'checkpoints') == ['6']
  page = (finished_run / 'report.html').read_text()
  assert results['selection']['sentence'] in page


def test_a_mixture_is_measured_set_by_set(make_config, tmp_path):
  config = make_config(data__mixing='balanced').unlock()
  config.data.name = 'mixture'
  config.data.members = {
    'one': {'name': 'tiny'},
    'two': {'name': 'tiny', 'validation': 'classes'},
  }
  found = loop.train_and_evaluate(config.lock(), str(tmp_path))
  evaluations = json.loads((tmp_path / 'results.json').read_text())[
    'evaluations'
  ]
  assert list(evaluations) == ['one/test', 'two/test']
  assert evaluations['one/test']['metrics'] == found
  assert (tmp_path / 'report-one.html').exists()
  assert (tmp_path / 'report-two.html').exists()


@pytest.mark.slow
def test_views_change_the_embedding_alike_in_evaluation_and_use(
  make_config, tmp_path, tiny_dataset
):
  config = make_config(
    model__pooling='average', eval__flip=True, eval__scales=(1.0, 2.0)
  )
  loop.train_and_evaluate(config, str(tmp_path))
  images = tiny_dataset.tests['test'].query.images_at(np.arange(5))
  model = retrieval_jax.load(str(tmp_path))
  embeddings = model.embed(images)
  np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
  # A flipped image has the same views.
  np.testing.assert_allclose(
    model.embed(images[:, :, ::-1]), embeddings, atol=1e-5
  )
  # Measured again without views, the run is used without them.
  plain = make_config(model__pooling='average')
  loop.evaluate(plain, str(tmp_path))
  flipped = retrieval_jax.load(str(tmp_path)).embed(images[:, :, ::-1])
  assert np.abs(flipped - embeddings).max() > 1e-3


@pytest.mark.slow
def test_the_evaluation_may_pool_otherwise(make_config, tmp_path, tiny_dataset):
  trained = {'model__pooling': 'gem', 'num_train_steps': 1}
  loop.train_and_evaluate(make_config(**trained), str(tmp_path))
  images = tiny_dataset.tests['test'].query.images_at(np.arange(5))
  variables = checkpoint.restore_variables(str(tmp_path))
  variables['params'] = variables['params']['embedder']
  x = (images.astype(np.float32) / 255 - 0.1307) / 0.3081
  doubled = jax.image.resize(x, (5, 16, 16, 1), 'linear', antialias=True)

  def embedded(**measured):
    loop.evaluate(make_config(**trained, **measured), str(tmp_path))
    return retrieval_jax.load(str(tmp_path)).embed(images)

  def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)

  regional = models.build_embedder(
    'convnet', 50, pooling='regional_gem', regional_gem={'p': 4.6}
  )
  variables['params']['pooling']['p'] = np.float32(4.6)
  np.testing.assert_allclose(
    embedded(eval__pooling='regional_gem', eval__gem_p=4.6),
    unit(regional.apply(variables, x, False)),
    atol=1e-5,
  )
  gem = models.build_embedder('convnet', 50, pooling='gem')
  largest = np.maximum(
    *(unit(gem.apply(variables, y, False, method='pool')) for y in (x, doubled))
  )
  np.testing.assert_allclose(
    embedded(
      eval__scales=(1.0, 2.0), eval__scale_pooling='max', eval__gem_p=4.6
    ),
    unit(gem.apply(variables, largest, False, method='project')),
    atol=1e-5,
  )
  with pytest.raises(InputError, match='eval.pooling has other parameters'):
    embedded(eval__pooling='flatten')


def test_scales_need_a_network_of_any_size(make_config, tmp_path):
  config = make_config(eval__scales=(1.0, 2.0))
  with pytest.raises(InputError, match=r'eval.scales has 2.0, .*pooling'):
    loop.train_and_evaluate(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


_COMMAND = (
  '--config=configs/arcface.py',
  '--config.num_train_steps=60',
  '--config.checkpoint_every_steps=5',
  '--config.log_every_steps=1',
)


def _start(workdir, *flags):
  return subprocess.Popen(
    [sys.executable, '-m', 'retrieval_jax.main', *_COMMAND]
    + [f'--workdir={workdir}', *flags],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.mark.slow
def test_kill_9_loses_no_more_than_since_the_checkpoint(tmp_path):
  whole = _start(tmp_path / 'whole')
  output, _ = whole.communicate(timeout=300)
  assert whole.returncode == 0, output
  cut = _start(tmp_path / 'cut')
  folder = tmp_path / 'cut' / 'checkpoints'
  deadline = time.time() + 300
  while not [s for s in (10, 15, 20, 25) if (folder / str(s)).exists()]:
    assert cut.poll() is None, cut.stdout.read()
    assert time.time() < deadline
    time.sleep(0.05)
  cut.kill()
  cut.communicate()
  with checkpoint.Checkpoints(str(tmp_path / 'cut')) as checkpoints:
    assert 10 <= checkpoints.latest_step() < 60
  again = _start(tmp_path / 'cut')
  output, _ = again.communicate(timeout=300)
  assert again.returncode == 0, output
  assert 'the run goes on' in output
  _assert_same_run(tmp_path / 'whole', tmp_path / 'cut')
