"""Checkpoints of a run: the latest and the best, as trees of the host.

This is the only module that knows Orbax. A checkpoint holds numpy leaves
without a device axis, so it restores on any number of devices and processes.
"""

import errno
import hashlib
import json
import os
import shutil
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from retrieval_jax.core import files
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import config as config_lib

CONFIG_FILE = 'config.json'
DATASET_FILE = 'dataset.json'

# The item's name is what Orbax's coming format expects of a single tree.
_ITEM = 'state'
_ROOM_FOR_METADATA = 2**20


def write_text(path: str, text: str) -> None:
  """Writes a file of a run, whole or not at all."""
  write_bytes(path, text.encode())


def write_bytes(path: str, content: bytes) -> None:
  """Writes a file of a run, whole or not at all."""
  try:
    files.write_bytes(path, content)
  except OSError as error:
    raise _file_error(path, error) from error


def _file_error(path: str, error: OSError) -> InputError:
  cure = {
    errno.ENOSPC: 'the disk is full: free some space and run again',
    errno.EDQUOT: 'the quota is used up: free some space and run again',
  }.get(error.errno, f'{error.strerror}: choose another --workdir')
  return InputError(f'{path} cannot be written; {cure}')


def open_workdir(workdir: str) -> None:
  """Makes the folder of a run, and finds out now if it cannot be written."""
  make_folder(os.path.join(workdir, 'checkpoints'))
  probe = os.path.join(workdir, f'.probe-{os.getpid()}')
  write_text(probe, 'a run is about to write here\n' * 64)
  os.remove(probe)


def make_folder(path: str) -> None:
  """Makes a folder of a run, and those above it, where they are missing."""
  try:
    os.makedirs(path, exist_ok=True)
  except OSError as error:
    raise _file_error(path, error) from error


def check_same_config(
  workdir: str, config: ml_collections.ConfigDict, *, flag: str = '--workdir'
) -> None:
  """Refuses the workdir of another run, or of none, naming what differs.

  Args:
    workdir: of a run, or of what else has a config and results.
    config: that is to go on there.
    flag: that chose the folder.

  Raises:
    InputError: `config.json` has other values of keys that a run depends on,
      the folder holds things but no `config.json`, or is a file.
  """
  if os.path.exists(workdir) and not os.path.isdir(workdir):
    raise InputError(
      f'{flag}={workdir} is a file; allowed is a folder, new or of an '
      'earlier run: choose another'
    )
  path = os.path.join(workdir, CONFIG_FILE)
  if not os.path.exists(path):
    if os.path.isdir(workdir) and os.listdir(workdir) not in (
      [],
      ['checkpoints'],
    ):
      raise InputError(
        f'{flag}: {workdir} is a folder that no run has made (it has no '
        f'{CONFIG_FILE}); allowed is a new or empty one: choose another'
      )
    return
  old = read_config(workdir)
  differing = config_lib.differing_keys(config.to_dict(), old.to_dict())
  if differing:
    new_values = config_lib.flatten(config)
    old_values = config_lib.flatten(old)
    changes = ', '.join(
      f'{key} {old_values.get(key)!r} -> {new_values.get(key)!r}'
      for key in differing
    )
    raise InputError(
      f'{flag}: {workdir} holds results of another config ({changes}); allowed '
      f'is the same config: choose another {flag}, or set these keys back'
    )


def read_config(workdir: str) -> ml_collections.ConfigDict:
  """Returns the config of the run in `workdir`."""
  return config_lib.from_json(_read_json(workdir, CONFIG_FILE))


def read_dataset_info(workdir: str) -> dict[str, Any]:
  """Returns {'name', 'preprocessing', 'num_classes'} of a run's data set."""
  return json.loads(_read_json(workdir, DATASET_FILE))


def _read_json(workdir: str, name: str) -> str:
  path = os.path.join(workdir, name)
  if not os.path.isfile(path):
    raise InputError(
      f'{workdir} is not the workdir of a run: it has no {name}; give the '
      'folder that was --workdir when the run was started'
    )
  with open(path, encoding='utf-8') as file:
    text = file.read()
  try:
    json.loads(text)
  except ValueError as error:
    raise InputError(
      f'{path} is damaged ({error}); allowed is what the run wrote: restore '
      'it, or choose another --workdir'
    ) from error
  return text


def has_checkpoint(workdir: str) -> bool:
  """Returns whether a run has saved anything yet, without opening it."""
  folder = os.path.join(workdir, 'checkpoints')
  return os.path.isdir(folder) and any(map(str.isdecimal, os.listdir(folder)))


class Checkpoints:
  """Saves and restores the state of one run.

  Kept are the latest, to go on from, and the one with the best score. (With
  Orbax's `max_to_keep` and `best_fn` the latest would be deleted whenever it is
  not among the best, and a run would go on from an old step.)

  Saving returns when the checkpoint is complete: a run that is killed loses
  the steps since the last one, never a checkpoint that was reported.

  Use it as a context manager.
  """

  def __init__(self, workdir: str):
    """Opens `workdir/checkpoints`."""
    self._folder = os.path.abspath(os.path.join(workdir, 'checkpoints'))
    policy = preservation_policy.AnyPreservationPolicy(
      [
        preservation_policy.LatestN(1),
        preservation_policy.BestN(
          get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
        ),
      ]
    )
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=_score,
        best_mode='max',
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
      ),
    )

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._manager.close()

  def latest_step(self) -> int | None:
    """Returns the step of the newest checkpoint, None without one."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Returns the step of the checkpoint with the best score, or None."""
    scored = [
      step for step in self._manager.all_steps() if self.score(step) is not None
    ]
    return max(scored, key=lambda step: (self.score(step), -step), default=None)

  def score(self, step: int | None) -> float | None:
    """Returns the score that a checkpoint was saved with, None without one."""
    metrics = None if step is None else self._manager.metrics(step)
    return None if not metrics else float(_score(metrics))

  def selected_step(self) -> int | None:
    """Returns the step that is tested and used: the best, else the latest."""
    best = self.best_step()
    return self.latest_step() if best is None else best

  def save(self, state: Any, score: float | None = None) -> None:
    """Saves a host tree under its step; a step that is there stays.

    Args:
      state: numpy leaves, with `state.step`.
      score: the metric that the best is chosen by; None: not evaluated.

    Raises:
      InputError: the disk is full, or the folder can no longer be written.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    self._check_room(state)
    try:
      saved = self._manager.save(
        step,
        args=ocp.args.Composite(**{_ITEM: ocp.args.StandardSave(state)}),
        metrics=None if score is None else {'score': float(score)},
        force=True,
      )
    except OSError as error:
      raise _file_error(self._folder, error) from error
    except ValueError as error:
      # How the storage library below Orbax says the same.
      if 'No space left' not in str(error):
        raise
      raise _file_error(
        self._folder, OSError(errno.ENOSPC, 'No space left on device')
      ) from error
    if not saved:
      raise RuntimeError(f'Orbax saved no checkpoint of step {step}')

  def _check_room(self, state):
    # Asked before, since the threads of the storage library print tracebacks
    # when the disk fills up under them.
    needed = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
    needed += _ROOM_FOR_METADATA
    free = shutil.disk_usage(self._folder).free
    if free < needed:
      raise InputError(
        f'{self._folder} cannot be written; the disk is full: a checkpoint '
        f'needs {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free: '
        'free some space and run again'
      )

  def restore(self, target: Any, step: int | None = None) -> Any:
    """Returns the state of `step`, or of the latest one.

    Args:
      target: a host tree with the structure, shapes and dtypes expected.
      step: one that is there.

    Raises:
      InputError: damaged, or made by another model.
    """
    step = self.latest_step() if step is None else step
    # Numpy leaves, not arrays of the devices that saved it.
    target = jax.tree.map(np.asarray, target)
    restored = self._read(step, ocp.args.StandardRestore(target))
    # Orbax lets the stored shape and a cast of the dtype pass.
    pairs = zip(
      jax.tree.leaves_with_path(target), jax.tree.leaves(restored), strict=True
    )
    for (path, expected), leaf in pairs:
      if leaf.shape != expected.shape or leaf.dtype != expected.dtype:
        raise self._unusable(
          step,
          f'{jax.tree_util.keystr(path)} is {leaf.dtype} {leaf.shape}, '
          f'expected {expected.dtype} {expected.shape}',
        )
    return restored

  def restore_params(self, step: int | None = None) -> Any:
    """Returns {'params', 'batch_stats'} of a step as nested dictionaries.

    Of a run that keeps moving averages, the embedder is the averaged one.
    """
    step = self.latest_step() if step is None else step
    if step is None or step not in self._manager.all_steps():
      raise InputError(
        f'{self._folder} holds no checkpoint'
        + (f' of step {step}' if step is not None else '')
        + f'; there are: {sorted(self._manager.all_steps()) or "none"}'
      )
    tree = self._read(step, ocp.args.StandardRestore())
    found = {name: tree.get(name) or {} for name in ('params', 'batch_stats')}
    if averages := tree.get('averages'):
      found['params'] = {**found['params'], 'embedder': averages['params']}
      found['batch_stats'] = averages.get('batch_stats') or {}
    return jax.tree.map(np.asarray, found)

  def _read(self, step: int, args: Any) -> Any:
    try:
      restored = self._manager.restore(
        step, args=ocp.args.Composite(**{_ITEM: args})
      )
    except Exception as error:  # Whatever is wrong with the files, they are.
      raise self._unusable(step, ' '.join(str(error).split())[:300]) from error
    return restored[_ITEM]

  def _unusable(self, step: int, reason: str) -> InputError:
    return InputError(
      f'{os.path.join(self._folder, str(step))} cannot be restored: it is '
      'damaged or of another model; remove that folder to go on from the '
      f'checkpoint before it, or choose another --workdir ({reason})'
    )


def _score(metrics: dict[str, float]) -> float:
  return metrics['score']


def selected_step(workdir: str) -> int | None:
  """Returns the step that the results of a run are of; None without any."""
  read_config(workdir)
  with Checkpoints(workdir) as checkpoints:
    return checkpoints.selected_step()


def sha256(tree: Any) -> str:
  """Returns a hash of a tree's names, shapes, dtypes and values.

  Example:
    >>> sha256({'a': np.zeros(2)}) == sha256({'a': np.zeros((2, 1))})
    False
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(tree):
    leaf = np.ascontiguousarray(leaf)
    head = f'{jax.tree_util.keystr(path)} {leaf.dtype.str} {leaf.shape}\n'
    digest.update(head.encode())
    digest.update(leaf.tobytes())
  return digest.hexdigest()


def restore_params(workdir: str, step: int | None = None) -> Any:
  """Returns the parameters of a run as a nested dictionary of numpy arrays.

  Args:
    workdir: of the run.
    step: a checkpointed step; None: the one that the results are of.

  Returns:
    {'embedder': ..., 'head': ...}, `head` only of a run with a proxy loss.

  Raises:
    InputError: not a run, no checkpoint, no such step, or a damaged one.
  """
  return restore_variables(workdir, step)['params']


def restore_variables(workdir: str, step: int | None = None) -> Any:
  """Returns {'params': ..., 'batch_stats': ...} of a run; see above."""
  read_config(workdir)
  with Checkpoints(workdir) as checkpoints:
    if step is None:
      step = checkpoints.selected_step()
    return checkpoints.restore_params(step)
