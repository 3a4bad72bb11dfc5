"""Files of the same content, whatever they are called and however they end."""

import os

import numpy as np

from retrieval_jax.core.strings import Strings
from retrieval_jax.data import equal_files


def first_equals(root, names):
  paths = Strings.of(str(root / name) for name in names)
  return equal_files.first_equals(paths).tolist()


def test_against_a_comparison_of_all_pairs(tmp_path):
  rng = np.random.default_rng(0)
  contents = []
  for i in range(60):
    # Of two sizes and few starts and ends, above and below what is read first.
    size = (50, 9000)[i % 2]
    content = np.zeros(size, np.uint8)
    content[0], content[-1], content[size // 3] = rng.integers(0, 2, 3)
    contents.append(content.tobytes())
    (tmp_path / str(i)).write_bytes(contents[-1])
  expected = [contents.index(content) for content in contents]
  assert len(set(expected)) == 16
  assert first_equals(tmp_path, map(str, range(60))) == expected


def test_links_and_empty_files_are_equal_and_what_is_no_file_is_not(tmp_path):
  (tmp_path / 'a').write_bytes(b'')
  (tmp_path / 'b').write_bytes(b'')
  (tmp_path / 'c').symlink_to('a')
  os.link(tmp_path / 'a', tmp_path / 'd')
  os.mkfifo(tmp_path / 'pipe')
  os.mkfifo(tmp_path / 'pipe2')
  names = ['pipe', 'gone', 'a', 'pipe2', 'gone', 'b', 'c', 'd']
  assert first_equals(tmp_path, names) == [0, 1, 2, 3, 4, 2, 2, 2]
  assert first_equals(tmp_path, []) == []


def test_only_what_may_be_a_copy_is_read_whole(tmp_path, monkeypatch):
  for i in range(5):
    (tmp_path / str(i)).write_bytes(bytes(9000 + i // 2) + bytes([i % 4]))
  read = []
  monkeypatch.setattr(
    equal_files.files, 'read_bytes', lambda path: read.append(path) or b''
  )
  first_equals(tmp_path, map(str, range(5)))
  assert not read
