import os
import pathlib
import stat
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.data import cache

_ARRAYS = {'x': np.arange(6).reshape(2, 3), 'y': np.array([1], np.int32)}


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

  def test_is_made_once(self):
    with self.assertNoLogs(level='WARNING'):
      for _ in range(3):
        self.get()
    self.assertEqual(self.made, 1)
    self.assertEqual([p.name for p in self.folder.iterdir()], ['some.npz'])

  def test_another_fingerprint_replaces_it(self):
    for fingerprint in '1', '2', '2':
      self.get(fingerprint)
    self.assertEqual(self.made, 2)
    self.assertLen(list(self.folder.iterdir()), 1)

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
    self.assertIn('Cannot cache in', logs.output[-1])
    self.assertEqual(self.made, 1)

  def test_a_full_disk_is_a_log_line_and_leaves_nothing(self):
    def fill_up(file, **_):
      file.write(b'half')
      raise OSError(28, 'No space left on device')

    with (
      mock.patch.object(np, 'savez', fill_up),
      self.assertLogs(level='WARNING') as logs,
    ):
      self.get()
    self.assertIn('No space left', logs.output[0])
    self.assertEmpty(list(self.folder.iterdir()))

  @absltest.skipIf(os.geteuid() == 0, 'root may write anywhere')
  def test_a_read_only_folder_is_a_log_line(self):
    self.folder.mkdir(parents=True)
    self.folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with self.assertLogs(level='WARNING'):
      self.get()

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
