"""Rows of memory maps, read from their files, are those of the arrays."""

import numpy as np
import pytest

from retrieval_jax.core import row_files, tiles
from retrieval_jax.core.errors import InputError


def _saved(folder, dtype=np.float32):
  x = np.random.default_rng(0).normal(size=(50, 7)).astype(dtype)
  np.save(folder / 'x.npy', x)
  return x, folder / 'x.npy'


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_rows_of_a_file(tmp_path, dtype):
  x, path = _saved(tmp_path, dtype)
  whole = np.load(path, mmap_mode='r')
  for view, expected in ((whole, x), (np.asarray(whole[9:40]), x[9:40])):
    rows = row_files.RowReader(view)
    assert rows.is_file
    np.testing.assert_array_equal(rows[3:8], expected[3:8])
    picked = np.array([20, 3, 4, 5, 3, 30, 0])
    np.testing.assert_array_equal(rows[picked], expected[picked])
    assert rows[5:5].shape == (0, 7)


def test_what_is_not_rows_of_a_file_is_read_as_an_array(tmp_path):
  x, path = _saved(tmp_path)
  columns = np.load(path, mmap_mode='r')[:, :3]
  private = np.load(path, mmap_mode='c')
  private[2] = 5  # Not in the file.
  for view, expected in ((x, x), (columns, x[:, :3]), (private, private)):
    rows = row_files.RowReader(view)
    assert not rows.is_file
    np.testing.assert_array_equal(rows[1:4], expected[1:4])


def test_a_file_that_is_gone_or_shorter(tmp_path):
  _, path = _saved(tmp_path)
  mapped = np.load(path, mmap_mode='r')
  rows = row_files.RowReader(mapped)
  (tmp_path / 'short').write_bytes(path.read_bytes()[:600])
  with path.open('r+b') as file:
    file.truncate(600)
  with pytest.raises(InputError, match='has 600 bytes'):
    rows[40:50]
  with pytest.raises(InputError, match='has 600 bytes'):
    row_files.RowReader(mapped)
  path.unlink()
  with pytest.raises(InputError, match='leave it in its place'):
    row_files.RowReader(mapped)


def test_paths(tmp_path):
  x, path = _saved(tmp_path)
  x[4] = 0
  np.save(path, x)
  found, num_zero = tiles.scan_embeddings(path)
  np.testing.assert_array_equal(found, x)
  assert num_zero == 1
  path.write_bytes(b'no array')
  with pytest.raises(InputError, match='numpy.save'):
    tiles.scan_embeddings(str(path))
