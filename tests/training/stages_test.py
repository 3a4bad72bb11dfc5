"""Stages are one run, and each of them is what it says."""

import functools
import json

import jax
import numpy as np
import pytest

from retrieval_jax import data
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import (
  checkpoint,
  config_checks,
  loop,
  report,
  reporting,
  results,
  selftest,
  stages,
  steps,
)
from retrieval_jax.training import config as config_lib
from retrieval_jax.training.experiment import make_experiment

_SMALL = {'num_train_steps': 4, 'image_size': 8}
_LARGE = {
  'num_train_steps': 4,
  'image_size': 16,
  'batch_size': 8,
  'accumulate_steps': 2,
  'learning_rate': 1e-2,
  'warmup_steps': 2,
}


@pytest.fixture
def make_staged(make_config):
  """Returns a function from stages and overrides to a tiny config of them."""

  def make(*found, **overrides):
    options = {
      'num_train_steps': None,
      'model__pooling': 'average',
      'stages': found,
    }
    return make_config('arcface', **options | overrides)

  return make


def test_stages_follow_each_other(make_staged):
  config = make_staged(
    {'num_epochs': 3, 'image_size': 8},
    {'num_train_steps': 7, 'image_size': 12, 'batch_size': 20},
    {'image_size': 16, 'learning_rate': 1},
    num_epochs=2,
  )
  found = stages.schedule(config, 81)
  # 81 images are 6 batches of 16, or 5 of 20.
  assert [(s.first_step, s.num_steps, s.end) for s in found] == [
    (0, 18, 18),
    (18, 7, 25),
    (25, 12, 37),
  ]
  assert [s.epoch_steps for s in found] == [6, 5, 6]
  assert [s.config.data.batch_size for s in found] == [16, 20, 16]
  rates = [s.config.optimizer.learning_rate for s in found]
  assert rates == [0.001, 0.001, 1.0]
  assert all(s.config.stages is None for s in found)
  assert config_lib.dataset_options(config)['image_size'] == 16


def test_a_config_without_stages_is_one(make_config):
  config = make_config()
  (found,) = stages.schedule(config, 80)
  assert found == (config, 0, 6, 5)
  config = make_config(num_train_steps=None, num_epochs=3)
  assert stages.schedule(config, 81)[0].num_steps == 18


@pytest.mark.parametrize(
  'found, words',
  [
    ((), r'stages is \(\); allowed is a tuple of at least one dictionary'),
    ((3,), 'stages.0 is 3; allowed is a dictionary'),
    ((_SMALL, {'image_sizes': 9}), "stages.1 is 'image_sizes'; did you mean"),
    ((_SMALL, {'image_size': 8}), 'image_size 8 after 8; .*that grow'),
    ((_LARGE, {'image_size': 8}), 'stages.1 has image_size 8 after 16'),
    ((_SMALL, {'num_epochs': 1}), 'stages.1 has no image_size'),
    (({'num_epochs': 0},), 'stages.0.num_epochs is 0; allowed is an integer'),
    (({'learning_rate': 'x'},), "stages.0.learning_rate is 'x'; allowed is a"),
    (
      (_SMALL, _LARGE | {'batch_size': 6}),
      'stages.1.batch_size is 6; .*of the 4 devices: set --config.stages.1.b',
    ),
    (
      (_SMALL, _LARGE | {'accumulate_steps': 5}),
      'stages.1.accumulate_steps is 5; .* stages.1.num_train_steps, 4',
    ),
  ],
)
def test_mistakes_name_the_key_of_the_stage(make_staged, found, words):
  with pytest.raises(InputError, match=words) as error:
    config_checks.validate(make_staged(*found), num_devices=4)
  assert '\n' not in str(error.value)


def test_steps_of_the_config_do_not_go_with_epochs_of_a_stage(make_staged):
  config = make_staged({'num_epochs': 2, 'image_size': 8}, num_train_steps=9)
  with pytest.raises(InputError, match='num_train_steps is 9; .*stages.0.num_'):
    config_checks.validate(config)


@pytest.mark.parametrize(
  'large, options, words',
  [
    ({'batch_size': 96}, {}, 'stages.1.batch_size is 96; .*at most 80'),
    ({'classes_per_batch': 3}, {}, 'stages.1.classes_per_batch is 3'),
    ({}, {'model__pooling': None}, "'flatten' the parameters depend on the"),
    ({'image_size': 9}, {'data__resize_size': 8}, 'data.resize_size is 8'),
  ],
)
def test_mistakes_that_the_data_show(make_staged, large, options, words):
  config = make_staged(_SMALL, _LARGE | large, **options)
  with pytest.raises(InputError, match=words):
    make_experiment(config)


def test_images_too_small_for_the_network(make_staged):
  config = make_staged(_SMALL | {'image_size': 4}, _LARGE)
  with pytest.raises(InputError, match='4 x 4 .*--config.stages.0.image_size'):
    make_experiment(config)


def test_the_command_line_changes_a_key_of_a_stage(make_staged):
  config = make_staged(_SMALL, _LARGE)
  config_lib.override(config, 'stages.1.batch_size', '24')
  config_lib.override(config, 'stages.0.num_epochs', '2')
  assert config.stages == (
    _SMALL | {'num_epochs': 2},
    _LARGE | {'batch_size': 24},
  )
  again = config_lib.from_json(config_lib.to_json(config))
  assert config_lib.differing_keys(config, again) == []
  config_lib.override(again, 'stages.0.image_size', '9')
  assert config_lib.differing_keys(config, again) == ['stages.0.image_size']
  for key in ('stages.2.batch_size', 'stages.1.batchsize', 'stages.1'):
    with pytest.raises(InputError, match=f"'{key}'.* stages.1.batch_size"):
      config_lib.override(config, key, '8')
  config_lib.override(config, 'stages', 'None')
  assert config.stages is None


def test_a_stage_sees_what_the_last_one_does_in_fewer_pixels(make_staged):
  config = make_staged(_SMALL, _LARGE, data__resize_size=20)
  first, last = make_experiment(config).stages
  preprocessing = first.train.preprocessing
  assert preprocessing == data.Preprocessing((8, 8, 1), 10, 4)
  assert last.train.preprocessing == data.Preprocessing((16, 16, 1), 20, 8)


def test_the_first_stage_is_the_program_of_a_run_without_stages(
  make_config, make_staged
):
  options = {'model__pooling': 'average', 'optimizer__ema_decay': 0.9}
  plain = make_config('arcface', num_train_steps=4, **options)
  staged = make_staged(_SMALL, _LARGE, **options)

  def program(config):
    stage = make_experiment(config).stages[0]
    step = functools.partial(
      steps.train_step,
      task=stage.task,
      optimizer=stage.optimizer,
      schedule=stage.schedule,
    )
    size = jax.device_count()
    batch = {
      'images': jax.ShapeDtypeStruct((16 // size, 8, 8, 1), 'uint8'),
      'labels': jax.ShapeDtypeStruct((16 // size,), 'int32'),
    }
    state = jax.eval_shape(
      functools.partial(stage.task.new_state, stage.optimizer), config.seed
    )
    return str(jax.make_jaxpr(step, axis_env=[('batch', size)])(state, batch))

  assert program(plain) == program(staged)


def _fail_at(monkeypatch, step):
  load_batch = data.TrainLoader.__call__

  def load(self, at):
    if at == step:
      raise ConnectionError('power cut')
    return load_batch(self, at)

  monkeypatch.setattr(data.TrainLoader, '__call__', load)


def _assert_same_state(config, one, other):
  experiment, found = make_experiment(config), []
  for run in (one, other):
    with checkpoint.Checkpoints(str(run)) as checkpoints:
      found.append(experiment.restore(checkpoints, checkpoints.latest_step()))
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.fixture
def staged(make_staged, monkeypatch):
  """Returns a config of two stages; no page is drawn, which others look at."""
  monkeypatch.setattr(report, 'write_report', lambda path, shown: None)
  return make_staged(
    _SMALL,
    _LARGE,
    optimizer__ema_decay=0.9,
    eval_every_steps=10,
    checkpoint_every_steps=3,
    eval__projector_images=0,
  )


def test_a_run_in_stages(staged, tmp_path, monkeypatch):
  traced, train_step = [], steps.train_step

  def count(state, batch, **options):
    traced.append(batch['images'].shape)
    return train_step(state, batch, **options)

  monkeypatch.setattr(steps, 'train_step', count)
  loop.train_and_evaluate(staged, str(tmp_path))
  assert traced == [(4, 8, 8, 1), (2, 16, 16, 1)]
  rows = reporting.read_history(str(tmp_path))
  key = 'train/learning_rate'
  rates = {row['step']: row[key] for row in rows if key in row}
  assert list(rates) == [2, 4, 6, 8]
  # Means of two steps: 0, 1, 0.75 and 0.25 of the rate, and 0, 0.5, 1 and 0.5.
  np.testing.assert_allclose(
    list(rates.values()), [0.5e-3, 0.5e-3, 0.25e-2, 0.75e-2], rtol=1e-5
  )
  evaluated = [r['step'] for r in rows if 'eval/test/precision_at_1' in r]
  assert evaluated == [4, 8]
  info = json.loads((tmp_path / 'dataset.json').read_text())
  assert info['preprocessing']['image_shape'] == [16, 16, 1]


@pytest.mark.slow
def test_continued_equals_uninterrupted(staged, tmp_path, monkeypatch):
  loop.train_and_evaluate(staged, str(tmp_path / 'whole'))
  # Cut in the first stage, between the stages, and between two updates.
  for step, reached in ((3, 3), (4, 4), (7, 7)):
    with monkeypatch.context() as patch:
      _fail_at(patch, step)
      with pytest.raises(ConnectionError):
        loop.train_and_evaluate(staged, str(tmp_path / 'cut'))
    with checkpoint.Checkpoints(str(tmp_path / 'cut')) as checkpoints:
      assert checkpoints.latest_step() == reached
  loop.train_and_evaluate(staged, str(tmp_path / 'cut'))
  _assert_same_state(staged, tmp_path / 'whole', tmp_path / 'cut')


@pytest.mark.slow
def test_a_stage_is_a_run_from_the_weights_of_the_one_before(
  make_staged, staged, tmp_path
):
  """With the averages of the weights, which go on."""
  loop.train_and_evaluate(staged, str(tmp_path / 'staged'))
  options = {
    'optimizer__ema_decay': 0.9,
    'checkpoint_every_steps': 10,
    'eval_every_steps': 10,
  }
  first = make_staged(_SMALL, **options)
  loop.train_and_evaluate(first, str(tmp_path / 'first'))
  with checkpoint.Checkpoints(str(tmp_path / 'first')) as checkpoints:
    weights = make_experiment(first).restore(checkpoints, 4)
  second = make_staged(_LARGE, **options, seed=1)
  (stage,) = make_experiment(second).stages
  state = stage.initial_state()
  state = state.replace(params=weights.params, averages=weights.averages)
  (tmp_path / 'second').mkdir()
  results.describe_run(
    str(tmp_path / 'second'), second, make_experiment(second).dataset
  )
  with checkpoint.Checkpoints(str(tmp_path / 'second')) as checkpoints:
    checkpoints.save(state)
  loop.train_and_evaluate(second, str(tmp_path / 'second'))
  found = []
  for config, name, step in ((staged, 'staged', 8), (second, 'second', 4)):
    with checkpoint.Checkpoints(str(tmp_path / name)) as checkpoints:
      found.append(make_experiment(config).restore(checkpoints, step))
  one, two = (s.replace(step=0) for s in found)
  # Another program, which may round otherwise.
  for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_the_self_test_looks_at_each_stage(make_staged):
  checks = selftest.run(make_staged(_SMALL, _LARGE))
  assert all(check.passed for check in checks)
  names = [check.name.split(': ', 1) for check in checks]
  first, second = (
    [name for stage, name in names if stage == f'stage {number} of 2']
    for number in (1, 2)
  )
  assert first == second and len(first) + len(second) == len(checks)
