import os
import pathlib
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.data import cache

_ARRAYS = {'x': np.arange(6).reshape(2, 3), 'y': np.array([1], np.int32)}
_ROOT = pathlib.Path(cache.__file__).parents[2]


def _start(code, *arguments):
  """Starts another process that prints what it logs."""
  begin = """
    import logging, os, pathlib, sys, time
    import numpy as np
    from retrieval_jax.data import cache
    logging.basicConfig(stream=sys.stdout, level=logging.INFO)
  """
  return subprocess.Popen(
    [
      *(sys.executable, '-c', textwrap.dedent(begin) + textwrap.dedent(code)),
      *map(str, arguments),
    ],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _wait_for(path):
  deadline = time.monotonic() + 60
  while not path.exists():
    if time.monotonic() > deadline:
      raise TimeoutError(path)
    time.sleep(0.01)


# Says that it makes the arrays by a file of its own, and goes on when told.
_SLOW = """
  def make():
    signal = pathlib.Path(sys.argv[1])
    signal.with_suffix(f'.{os.getpid()}').touch()
    for _ in range(6000):
      if signal.exists():
        break
      time.sleep(0.01)
    return {'x': np.arange(5)}

  print(cache.cached_arrays('some', '1', make)['x'].sum())
"""


class CacheTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    parent = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(parent) / 'deep' / 'cache'
    self.use_folder(self.folder)
    self.made = 0

  def use_folder(self, folder):
    self.enterContext(
      mock.patch.dict(os.environ, {'RETRIEVAL_JAX_CACHE': str(folder)})
    )

  def get(self, fingerprint='1'):
    def make():
      self.made += 1
      return {name: array.copy() for name, array in _ARRAYS.items()}

    arrays = cache.cached_arrays('some', fingerprint, make)
    self.assertEqual(arrays.keys(), _ARRAYS.keys())
    for name, array in arrays.items():
      np.testing.assert_array_equal(array, _ARRAYS[name])
      self.assertEqual(array.dtype, _ARRAYS[name].dtype)
      self.assertFalse(array.flags.writeable)

  def assert_only_the_cache_is_left(self, names=('some.lock', 'some.npz')):
    self.assertCountEqual([p.name for p in self.folder.iterdir()], names)

  def test_is_made_once(self):
    with self.assertNoLogs(level='WARNING'):
      for _ in range(3):
        self.get()
    self.assertEqual(self.made, 1)
    self.assert_only_the_cache_is_left()

  def test_another_fingerprint_replaces_it(self):
    for fingerprint in '1', '2', '2':
      self.get(fingerprint)
    self.assertEqual(self.made, 2)
    self.assert_only_the_cache_is_left()

  @parameterized.parameters('empty', 'short', 'flipped', 'text', 'pickle')
  def test_a_damaged_file_is_made_anew_and_this_is_said(self, damage):
    self.get()
    path = self.folder / 'some.npz'
    content = path.read_bytes()
    middle = content.index(_ARRAYS['x'].tobytes())
    path.write_bytes(
      {
        'empty': b'',
        'short': content[:-40],
        'flipped': content[:middle] + b'\xff' + content[middle + 1 :],
        'text': b'hello',
        'pickle': b'\x80\x04N.',
      }[damage]
    )
    with self.assertLogs(level='WARNING') as logs:
      self.get()
    self.assertLen(logs.output, 1)
    self.assertIn('some.npz is not used', logs.output[0])
    self.assertEqual(self.made, 2)
    with self.assertNoLogs(level='WARNING'):
      self.get()
    self.assertEqual(self.made, 2)

  def test_a_folder_that_cannot_be_made_is_a_log_line(self):
    file = self.folder.parent.parent / 'file'
    file.touch()
    self.use_folder(file / 'cache')
    with self.assertLogs(level='WARNING') as logs:
      self.get()
    self.assertLen(logs.output, 1)
    self.assertIn('Cannot cache in', logs.output[0])
    self.assertEqual(self.made, 1)

  @parameterized.parameters(100, 5_000, 70_000)
  def test_a_full_disk_is_a_log_line_and_leaves_nothing(self, limit):
    code = """
      import resource
      limit = int(sys.argv[1])
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
      make = lambda: {'x': np.arange(10_000), 'y': np.arange(10)}
      print(cache.cached_arrays('some', '1', make)['x'].sum())
    """
    process = _start(code, limit)
    output, _ = process.communicate(timeout=60)
    self.assertEqual(process.returncode, 0, output)
    log, result = output.splitlines()
    self.assertIn('WARNING', log)
    self.assertIn('works without', log)
    self.assertEqual(int(result), 9999 * 5000)
    self.assert_only_the_cache_is_left(['some.lock'])

  def start_to_make(self):
    """Starts a process and returns when it is making the arrays."""
    signal = self.folder.parent / 'signal'
    signal.parent.mkdir()
    process = _start(_SLOW, signal)
    _wait_for(signal.with_suffix(f'.{process.pid}'))
    return process, signal

  def test_two_processes_make_it_once(self):
    first, signal = self.start_to_make()
    second = _start(_SLOW, signal)
    waiting = second.stdout.readline()
    signal.touch()
    outputs = [p.communicate(timeout=60)[0] for p in (first, second)]
    self.assertIn('Waiting for another process', waiting)
    self.assertEqual([output.split()[-1] for output in outputs], ['10', '10'])
    self.assertLen(list(signal.parent.glob('signal.*')), 1)
    self.assert_only_the_cache_is_left()

  def test_a_killed_process_blocks_nobody(self):
    process, _ = self.start_to_make()
    process.kill()
    process.communicate()
    # What it could have left had it been writing.
    (self.folder / f'some.{32 * "a"}.tmp').touch()
    # Of another cache, whose name begins alike.
    other = self.folder / f'some.more.{32 * "a"}.tmp'
    other.touch()
    with self.assertNoLogs(level='WARNING'):
      self.get()
    self.assertEqual(self.made, 1)
    self.assert_only_the_cache_is_left(['some.lock', 'some.npz', other.name])

  def test_a_process_that_hangs_is_waited_for_only_so_long(self):
    process, _ = self.start_to_make()
    try:
      with (
        mock.patch.object(cache, '_LONGEST_WAIT_SECONDS', 0.2),
        self.assertLogs(level='WARNING') as logs,
      ):
        self.get()
    finally:
      process.kill()
      process.communicate()
    self.assertIn('Waited too long', logs.output[0])
    self.assertEqual(self.made, 1)

  def test_threads_make_it_once(self):
    def make():
      self.made += 1
      time.sleep(0.2)
      return dict(_ARRAYS)

    threads = [
      threading.Thread(target=cache.cached_arrays, args=('some', '1', make))
      for _ in range(4)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    self.assertEqual(self.made, 1)

  @parameterized.parameters('no module', 'no locks')
  def test_works_where_there_are_no_locks(self, case):
    if case == 'no module':
      patch = mock.patch.dict(sys.modules, {'fcntl': None})
    else:
      error = OSError(37, 'No locks available')
      patch = mock.patch('fcntl.flock', side_effect=error)
    with patch, self.assertNoLogs(level='WARNING'):
      for _ in range(2):
        self.get()
    self.assertEqual(self.made, 1)

  def test_an_error_while_making_frees_the_lock(self):
    def fail():
      raise ValueError('no data')

    with self.assertRaisesRegex(ValueError, 'no data'):
      cache.cached_arrays('some', '1', fail)
    self.get()
    self.assertEqual(self.made, 1)

  def test_no_home_is_a_log_line(self):
    # As of a user that is in no password file.
    with (
      mock.patch.object(
        cache, 'cache_folder', side_effect=RuntimeError('no home')
      ),
      self.assertLogs(level='WARNING') as logs,
    ):
      self.get()
    self.assertIn('no home', logs.output[0])

  @absltest.skipIf(os.geteuid() == 0, 'root may write anywhere')
  def test_a_read_only_folder_is_a_log_line(self):
    self.folder.mkdir(parents=True)
    self.folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with self.assertLogs(level='WARNING'):
      self.get()

  @absltest.skipIf(os.geteuid() == 0, 'root may write anywhere')
  def test_a_read_only_folder_with_the_file_is_read(self):
    self.get()
    self.folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with self.assertNoLogs(level='WARNING'):
      self.get()
    self.assertEqual(self.made, 1)

  def test_the_folder_follows_the_environment(self):
    environment = {'HOME': '/h', 'XDG_CACHE_HOME': '/x'}
    with mock.patch.dict(os.environ, environment, clear=True):
      self.assertEqual(str(cache.cache_folder()), '/x/retrieval_jax')
      del os.environ['XDG_CACHE_HOME']
      self.assertEqual(str(cache.cache_folder()), '/h/.cache/retrieval_jax')
      os.environ['RETRIEVAL_JAX_CACHE'] = '~/mine'
      self.assertEqual(str(cache.cache_folder()), '/h/mine')


if __name__ == '__main__':
  absltest.main()
