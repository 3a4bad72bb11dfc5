"""Checkpoints: the latest and the best stay, and damage is named."""

import errno
import functools
import os
import shutil

import jax
import numpy as np
import pytest

from retrieval_jax.core.errors import InputError
from retrieval_jax.training import checkpoint, optim, tasks
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import state as state_lib


@pytest.fixture
def state(make_config):
  config = make_config('arcface')
  optimizer = optim.make_optimizer(config.optimizer, lambda step: 0.1)
  task = tasks.make_task(config, config_lib.Classes(10), (8, 8, 1), None)
  return state_lib.create_state(functools.partial(task.new_state, optimizer), 0)


def _at(state, step):
  return state.replace(step=np.asarray(step, np.int32))


def test_latest_and_best_stay(tmp_path, state):
  with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
    for step, score in ((1, 0.1), (2, 0.5), (3, 0.3), (4, None), (5, 0.2)):
      checkpoints.save(_at(state, step), score)
    assert checkpoints.latest_step() == 5
    assert checkpoints.best_step() == 2
    assert checkpoints.selected_step() == 2
    assert checkpoints.score(2) == 0.5
    assert checkpoints.score(5) == 0.2
  kept = sorted(os.listdir(tmp_path / 'checkpoints'))
  assert kept == ['2', '5']
  with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
    assert checkpoints.latest_step() == 5
    restored = checkpoints.restore(state)
  assert int(restored.step) == 5
  assert type(restored) is type(state)
  for one, other in zip(
    jax.tree.leaves(_at(state, 5)), jax.tree.leaves(restored), strict=True
  ):
    np.testing.assert_array_equal(one, other)
    assert np.asarray(one).dtype == np.asarray(other).dtype


def test_without_scores_the_latest_alone_stays_and_is_selected(tmp_path, state):
  with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(_at(state, step))
    assert checkpoints.best_step() is None
    assert checkpoints.selected_step() == 3
    assert checkpoints.score(3) is None
  assert os.listdir(tmp_path / 'checkpoints') == ['3']


def test_no_checkpoint_yet(tmp_path):
  with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
    assert checkpoints.latest_step() is None
    assert checkpoints.selected_step() is None
    with pytest.raises(InputError, match='holds no checkpoint'):
      checkpoints.restore_params()


def test_restore_params(tmp_path, state, make_config):
  config = make_config('arcface')
  with pytest.raises(InputError, match='not the workdir of a run'):
    checkpoint.restore_params(str(tmp_path))
  (tmp_path / 'config.json').write_text(config_lib.to_json(config))
  with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
    checkpoints.save(_at(state, 3), 0.5)
  params = checkpoint.restore_params(str(tmp_path))
  assert params['head']['proxies'].shape == (10, 50)
  np.testing.assert_array_equal(
    params['head']['proxies'], state.params['head']['proxies']
  )
  with pytest.raises(InputError, match=r'step 4; there are: \[3\]'):
    checkpoint.restore_params(str(tmp_path), step=4)


def test_damaged_and_foreign_checkpoints(tmp_path, state):
  with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
    checkpoints.save(_at(state, 3), 0.5)
    other = state.replace(params=state.params | {'extra': np.zeros(2)})
    with pytest.raises(InputError, match='damaged or of another model'):
      checkpoints.restore(other)
    wide = state.replace(
      params=state.params | {'head': {'proxies': np.zeros((7, 50))}}
    )
    with pytest.raises(InputError, match='damaged or of another model'):
      checkpoints.restore(wide)
  for root, _, names in os.walk(tmp_path / 'checkpoints' / '3' / 'state'):
    for name in names:
      path = os.path.join(root, name)
      with open(path, 'r+b') as file:
        file.truncate(os.path.getsize(path) // 2)
  with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
    with pytest.raises(InputError, match='damaged') as error:
      checkpoints.restore(state)
  assert '\n' not in str(error.value)


def test_workdir_that_cannot_be_one(tmp_path, make_config):
  file = tmp_path / 'file'
  file.write_text('mine')
  with pytest.raises(InputError, match='is a file'):
    checkpoint.check_same_config(str(file), make_config())
  foreign = tmp_path / 'photos'
  foreign.mkdir()
  (foreign / 'a.jpg').write_text('mine')
  with pytest.raises(InputError, match='no run has made'):
    checkpoint.check_same_config(str(foreign), make_config())
  with pytest.raises(InputError, match='cannot be written'):
    checkpoint.open_workdir(str(file / 'below'))
  assert file.read_text() == 'mine'


def test_damaged_config(tmp_path, make_config):
  (tmp_path / 'config.json').write_text('{"seed": ')
  with pytest.raises(InputError, match='config.json is damaged'):
    checkpoint.check_same_config(str(tmp_path), make_config())


def test_full_disk(tmp_path, state, monkeypatch):
  def full(*unused, **unused_too):
    raise OSError(errno.ENOSPC, 'No space left on device')

  with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
    checkpoints.save(_at(state, 1))
    monkeypatch.setattr(type(checkpoints._manager), 'save', full)
    with pytest.raises(InputError, match='disk is full'):
      checkpoints.save(_at(state, 2))
  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(InputError, match='disk is full'):
    checkpoint.write_text(str(tmp_path / 'results.json'), 'text')
  assert not list(tmp_path.glob('*.tmp'))


def test_too_little_room_is_found_before_anything_is_written(
  tmp_path, state, monkeypatch
):
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  usage = shutil.disk_usage(tmp_path)
  with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
    for free, fits in ((size - 1, False), (size + 2**21, True)):
      monkeypatch.setattr(
        shutil, 'disk_usage', lambda path, free=free: usage._replace(free=free)
      )
      if fits:
        checkpoints.save(_at(state, 1))
      else:
        with pytest.raises(InputError, match='the disk is full: .* MiB'):
          checkpoints.save(_at(state, 1))
        assert checkpoints.latest_step() is None
    assert checkpoints.latest_step() == 1


def test_a_real_full_disk(tmp_path, state, capfd):
  """On a file system of 64 KiB, where this machine lets us make one."""
  if shutil.which('mount') is None or os.geteuid() != 0:
    pytest.skip('needs root')
  small = tmp_path / 'small'
  small.mkdir()
  if os.system(f'mount -t tmpfs -o size=64k tmpfs {small} 2>/dev/null'):
    pytest.skip('needs the right to mount')
  try:
    with pytest.raises(InputError, match='disk is full'):
      with checkpoint.Checkpoints(str(small)) as checkpoints:
        checkpoints.save(_at(state, 1))
    assert 'Traceback' not in capfd.readouterr().err
  finally:
    os.system(f'umount {small}')
