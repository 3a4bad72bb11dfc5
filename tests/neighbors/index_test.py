"""Indexes on disk: what comes back, kills, damage, removal."""

import json
import os
import shutil

import numpy as np
import pytest

from retrieval_jax import neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings
from retrieval_jax.neighbors import index as index_module
from retrieval_jax.neighbors import index_files, index_writer
from retrieval_jax.neighbors.index import Index
from retrieval_jax.neighbors.index_writer import IndexWriter

MODEL = {
  'workdir': '/runs/a',
  'step': 3,
  'config_sha256': 'c0',
  'weights_sha256': 'f0',
}
NAMES = [
  '/photos/a.jpg',
  '/photos/café/\N{SNOWMAN}.png',
  '/photos/two\nlines.jpg',
  os.fsdecode(b'/photos/latin-\xe9.jpg'),
  '/photos/"quoted", and spaced .webp',
]


def unit_rows(num_rows, dim=4, seed=0):
  rows = np.random.default_rng(seed).normal(size=(num_rows, dim))
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  return rows.astype(np.float32)


def make(folder, names=NAMES, seed=0, dim=4):
  rows = unit_rows(len(names), dim, seed)
  with IndexWriter(folder, neighbors.Manifest(dim, MODEL)) as writer:
    writer.add(rows, Strings.of(names))
    writer.commit(complete=True, sources=('/photos',))
  return rows


def append(folder, names, seed):
  rows = unit_rows(len(names), seed=seed)
  with IndexWriter(folder, index_files.read_manifest(folder)) as writer:
    writer.add(rows, Strings.of(names))
    writer.commit()
  return rows


def content(folder):
  index = Index.open(folder)
  return list(index.paths), np.array(index.embeddings).tolist()


@pytest.fixture
def folder(tmp_path):
  return str(tmp_path / 'index')


def test_gives_back_what_was_put_in(folder):
  rows = make(folder)
  index = Index.open(folder)
  assert list(index.paths) == NAMES
  np.testing.assert_array_equal(index.embeddings, rows)
  assert isinstance(index.embeddings, np.memmap)
  assert (len(index), index.threshold) == (5, None)
  assert index.manifest.sources == ('/photos',)


def test_grows_and_an_open_index_stays_what_it_was(folder):
  first = make(folder)
  before = Index.open(folder)
  second = append(folder, ['/b', '/c'], seed=1)
  index = Index.open(folder)
  assert list(index.paths) == [*NAMES, '/b', '/c']
  np.testing.assert_array_equal(index.embeddings, [*first, *second])
  assert list(before.paths) == NAMES
  # Checksums go on over the pieces.
  assert index.manifest.arrays == Index.open(folder).manifest.arrays


def test_rows_without_a_commit_do_not_count(folder):
  make(folder)
  before = content(folder)
  with IndexWriter(folder, index_files.read_manifest(folder)) as writer:
    writer.add(unit_rows(1), Strings.of(['/lost']))
  assert content(folder) == before
  append(folder, ['/kept'], seed=3)
  assert Index.open(folder).paths[5] == '/kept'


def test_search_is_that_of_a_loop(folder):
  rows = make(folder, [f'/{i}' for i in range(50)]).astype(np.float64)
  queries = np.random.default_rng(7).normal(size=(6, 4))
  similarities, found = Index.open(folder).search(queries, 3)
  for query, values, places in zip(queries, similarities, found, strict=True):
    expected = rows @ query / np.linalg.norm(query)
    np.testing.assert_array_equal(places, np.argsort(-expected)[:3])
    np.testing.assert_allclose(values, np.sort(expected)[::-1][:3], atol=1e-6)


def test_the_searcher_of_an_index_is_kept(folder, monkeypatch):
  make(folder)
  made = []

  class Counted(neighbors.Searcher):
    def __init__(self, *arguments, **options):
      made.append(options)
      super().__init__(*arguments, **options)

  monkeypatch.setattr(index_module, 'Searcher', Counted)
  index = Index.open(folder)
  for budget in (64, 64, 32):
    index.search(unit_rows(2), 3, memory_budget_mb=budget)
  assert made == [{'memory_budget_mb': 64}, {'memory_budget_mb': 32}]


@pytest.mark.parametrize('removed', [[0], [1, 3], [4], [0, 1, 2, 3, 4]])
def test_removal_keeps_the_others_in_order(folder, removed):
  rows = make(folder)
  neighbors.remove_images(Index.open(folder), np.array(removed))
  kept = [i for i in range(5) if i not in removed]
  index = Index.open(folder)
  assert list(index.paths) == [NAMES[i] for i in kept]
  np.testing.assert_array_equal(index.embeddings, rows[kept])
  assert (index.manifest.sources, index.manifest.complete) == (
    ('/photos',),
    True,
  )
  append(folder, ['/new'], seed=2)
  assert Index.open(folder).paths[len(kept)] == '/new'
  assert len(os.listdir(folder)) == 5  # Three arrays, the manifest, the lock.


class Snapshots:
  """Copies a folder before and after each thing that a writer does to disk."""

  def __init__(self, folder, copies, monkeypatch, flushes=True):
    self.folder, self.copies, self.taken = folder, copies, []
    # What the writer's buffers hold may be on the disk at a kill, or not.
    self.flushes = flushes
    for owner, name in (
      (IndexWriter, '_append'),
      (index_files, 'write_manifest'),
      (index_writer.os, 'remove'),
      (index_writer.os, 'replace'),
      (index_writer.os, 'fsync'),
    ):
      monkeypatch.setattr(owner, name, self.around(getattr(owner, name)))

  def around(self, function):
    def call(*arguments, **keywords):
      self.take()
      result = function(*arguments, **keywords)
      if isinstance(arguments[0], IndexWriter) and self.flushes:
        for file in arguments[0]._files.values():
          file.flush()
      self.take()
      return result

    return call

  def take(self):
    copy = str(self.copies / str(len(self.taken)))
    shutil.copytree(self.folder, copy)
    self.taken.append(copy)


@pytest.mark.parametrize('flushes', [False, True])
@pytest.mark.parametrize('change', ['append', 'remove', 'overwrite'])
def test_a_kill_at_any_moment_leaves_a_whole_index(
  folder, tmp_path, monkeypatch, change, flushes
):
  make(folder)
  before = content(folder)

  def do(folder):
    if change == 'append':
      append(folder, ['/b', '/c\n'], seed=1)
    elif change == 'remove':
      neighbors.remove_images(Index.open(folder), np.array([1]))
    else:
      old = index_files.read_manifest(folder)
      new = neighbors.Manifest(4, MODEL)
      with IndexWriter(folder, new, replaces=old) as writer:
        writer.add(unit_rows(2, seed=5), Strings.of(['/x', '/y']))
        writer.commit()

  with monkeypatch.context() as patch:
    snapshots = Snapshots(folder, tmp_path, patch, flushes)
    do(folder)
  after = content(folder)
  states = [content(copy) for copy in snapshots.taken]
  assert before in states and after in states
  assert all(state in (before, after) for state in states)
  # The same change again, from wherever it was killed.
  for copy, state in zip(snapshots.taken, states, strict=True):
    if state == before:
      do(copy)
      assert content(copy) == after
      assert len(os.listdir(copy)) == len(os.listdir(folder))


def test_a_kill_before_the_first_commit_leaves_a_free_folder(
  folder, tmp_path, monkeypatch
):
  os.mkdir(folder)
  with monkeypatch.context() as patch:
    snapshots = Snapshots(folder, tmp_path, patch)
    make(folder)
  for copy in snapshots.taken:
    if not os.path.exists(os.path.join(copy, 'manifest.json')):
      assert index_writer.is_free(copy)
      make(copy)
    assert content(copy) == content(folder)


def test_nothing_is_left_where_nothing_was_committed(folder):
  with IndexWriter(folder, neighbors.Manifest(4, MODEL)) as writer:
    writer.add(unit_rows(1), Strings.of(['/a']))
  assert not os.path.exists(folder)


def test_a_second_writer_is_refused(folder):
  make(folder)
  manifest = index_files.read_manifest(folder)
  with IndexWriter(folder, manifest):
    with pytest.raises(InputError, match='being written by another process'):
      IndexWriter(folder, manifest)
  append(folder, ['/b'], seed=1)
  with pytest.raises(InputError, match='changed by another process'):
    IndexWriter(folder, manifest)
  assert len(Index.open(folder)) == 6


def test_a_full_disk_is_said_and_loses_nothing(folder, monkeypatch):
  make(folder)
  before = content(folder)

  def fail(*_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(index_writer.os, 'fsync', fail)
    with pytest.raises(InputError, match='No space left on device'):
      append(folder, ['/b'], seed=1)
  assert content(folder) == before


def truncate(folder, name, size):
  with open(os.path.join(folder, name), 'r+b') as file:
    file.truncate(size)


def flip(folder, name):
  with open(os.path.join(folder, name), 'r+b') as file:
    file.seek(9)
    byte = file.read(1)[0]
    file.seek(9)
    file.write(bytes([byte ^ 4]))


def edit(folder, **changes):
  path = os.path.join(folder, 'manifest.json')
  with open(path) as file:
    fields = json.load(file) | changes
  with open(path, 'w') as file:
    json.dump(fields, file)


@pytest.mark.parametrize(
  'damage, message',
  [
    (
      lambda f: truncate(f, 'embeddings-0.f32', 70),
      '70 bytes .* 80: it is tru',
    ),
    (lambda f: truncate(f, 'paths-0.bytes', 1), 'paths-0.bytes has 1 bytes'),
    (lambda f: truncate(f, 'offsets-0.i64', 0), 'offsets-0.i64 has 0 bytes'),
    (lambda f: flip(f, 'embeddings-0.f32'), 'f32 is damaged .its checksum'),
    (lambda f: flip(f, 'paths-0.bytes'), 'paths-0.bytes is damaged'),
    (lambda f: flip(f, 'offsets-0.i64'), 'offsets-0.i64 is damaged'),
    (lambda f: os.remove(f'{f}/offsets-0.i64'), 'offsets-0.i64 is missing'),
    (lambda f: os.remove(f'{f}/manifest.json'), 'is not an index'),
    (lambda f: truncate(f, 'manifest.json', 50), 'manifest.json is damaged'),
    (lambda f: truncate(f, 'manifest.json', 0), 'manifest.json is damaged'),
    (lambda f: edit(f, format='other'), '"format" is not'),
    (lambda f: edit(f, version=2), 'version 2; allowed is 1'),
    (lambda f: edit(f, num_images=4), 'not those of 4 images'),
    (lambda f: edit(f, embedding_dim=0), 'not a whole number'),
    (lambda f: edit(f, arrays=[]), 'missing or wrong'),
    (lambda f: edit(f, sources=5), 'missing or wrong'),
    (lambda f: edit(f, model=None), 'no model'),
    (lambda f: edit(f, threshold={'value': '0.5'}), 'threshold without a numb'),
    (shutil.rmtree, 'does not exist'),
  ],
)
def test_damage_is_one_line(folder, damage, message):
  make(folder)
  damage(folder)
  with pytest.raises(InputError, match=message) as caught:
    Index.open(folder)
  assert '\n' not in str(caught.value)
  assert folder in str(caught.value)


def test_damage_to_values_shows_without_verifying_by_size_alone(folder):
  make(folder)
  flip(folder, 'embeddings-0.f32')
  assert len(Index.open(folder, verify=False)) == 5


def test_queries_of_another_width_and_an_empty_index_are_refused(folder):
  make(folder)
  with pytest.raises(InputError, match='queries have 3 dimensions, but .* 4'):
    Index.open(folder).search(np.ones((1, 3)), 1)
  neighbors.remove_images(Index.open(folder), np.arange(5))
  with pytest.raises(InputError, match='holds no images'):
    Index.open(folder).search(np.ones((1, 4)), 1)


@pytest.mark.parametrize(
  'name, message',
  [
    ('weights_sha256', 'other weights .*f0 and 99'),
    ('config_sha256', 'another network or preprocessing .*c0 and 99'),
  ],
)
def test_another_model_is_refused_by_its_hash(folder, name, message):
  make(folder)
  index = Index.open(folder)
  index.check_model(MODEL | {'workdir': '/moved'})
  with pytest.raises(InputError, match=message) as refused:
    index.check_model(MODEL | {name: '99'})
  is_cause_known = name == 'config_sha256'
  assert ('measured anew' in str(refused.value)) == is_cause_known
  with pytest.raises(InputError, match=message + '.*: correct --workdir'):
    index.check_model(MODEL | {name: '99', 'workdir': '/other'})
