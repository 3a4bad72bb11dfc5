"""Indexes in the formats of other tools."""

import os
import sys

import numpy as np
import pytest
from pyarrow import parquet

from retrieval_jax import neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings
from retrieval_jax.neighbors import export

NAMES = ['/a.jpg', '/café\n.png', '/c.webp', '/d.webp', '/e.webp']


def make_index(folder, names):
  rows = np.random.default_rng(0).normal(size=(len(names), 8))
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  with neighbors.IndexWriter(folder, neighbors.Manifest(8, {})) as writer:
    writer.add(rows.astype(np.float32), Strings.of(names))
    writer.commit(complete=True)
  return neighbors.Index.open(folder)


@pytest.fixture
def index(tmp_path, monkeypatch):
  monkeypatch.setattr(export, '_BLOCK_ROWS', 2)
  return make_index(str(tmp_path / 'index'), NAMES)


def test_npz(index, tmp_path):
  path = str(tmp_path / 'out.npz')
  export.to_npz(index, path)
  with np.load(path) as content:
    np.testing.assert_array_equal(content['embeddings'], index.embeddings)
    assert [os.fsdecode(name) for name in content['paths']] == NAMES


def test_parquet(index, tmp_path):
  path = str(tmp_path / 'out.parquet')
  export.to_parquet(index, path)
  table = parquet.read_table(path)
  assert table.column('path').to_pylist() == NAMES
  rows = np.array(table.column('embedding').to_pylist(), np.float32)
  np.testing.assert_array_equal(rows, index.embeddings)


def test_parquet_of_names_that_are_not_utf_8(tmp_path):
  names = ['/a', os.fsdecode(b'/\xe9')]
  index = make_index(str(tmp_path / 'index'), names)
  path = str(tmp_path / 'out.parquet')
  export.to_parquet(index, path)
  column = parquet.read_table(path).column('path').to_pylist()
  assert column == [b'/a', b'/\xe9']


def test_faiss_finds_what_the_index_finds(index, tmp_path):
  import faiss

  path = str(tmp_path / 'out.faiss')
  export.to_faiss(index, path)
  queries = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
  queries /= np.linalg.norm(queries, axis=1, keepdims=True)
  similarities, rows = faiss.read_index(path).search(queries, 3)
  expected = index.search(queries, 3)
  np.testing.assert_array_equal(rows, expected[1])
  np.testing.assert_allclose(similarities, expected[0], atol=1e-6)


def test_without_faiss_the_extra_is_named(index, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'faiss', None)
  with pytest.raises(InputError, match=r'pip install .retrieval_jax\[faiss\]'):
    export.to_faiss(index, str(tmp_path / 'out.faiss'))


def test_an_unknown_ending_is_refused():
  with pytest.raises(InputError, match='.faiss, .npz, .parquet'):
    export.find_export('photos.csv')
