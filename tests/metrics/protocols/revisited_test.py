"""Revisited Oxford and Paris against a loop, and its pickles."""

import os
import pickle
import pickletools

import numpy as np
import pytest

from retrieval_jax.core import safe_pickle
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics.protocols import revisited

_SHORT = dict(zip(revisited.METRICS, ('map', 'p1', 'p5', 'p10'), strict=True))


def _loop(ranks, positives, junk):
  """The protocol as its authors describe it, for one query without ties."""
  places, taken_out = [], 0
  for place, row in enumerate(ranks):
    if row in junk:
      taken_out += 1
    elif row in positives:
      places.append(place - taken_out)
  average = 0.0
  for j, place in enumerate(places):
    before = 1.0 if place == 0 else j / place
    average += (before + (j + 1) / (place + 1)) / 2 / len(positives)
  values = {'map': average}
  for k in (1, 5, 10):
    last = min(k, places[-1] + 1)
    values[f'p{k}'] = sum(place + 1 <= last for place in places) / last
  return values


def _raw(num_queries=5, num_rows=40, seed=0):
  """The dictionary of a ground truth, random."""
  random = np.random.default_rng(seed)
  queries = []
  for number in range(num_queries):
    rows = random.permutation(num_rows)
    easy = rows[:3] if number != 1 else rows[:0]  # A query that easy skips.
    parts = {'easy': easy, 'hard': rows[3:8], 'junk': rows[8:12]}
    queries.append({'bbx': [10.5, 20.0, 300.25, 400.0], **parts})
  return {
    'imlist': [f'all_souls_{i:06d}' for i in range(num_rows)],
    'qimlist': [f'query_{i}' for i in range(num_queries)],
    'gnd': queries,
  }


def _write(path, data, **kwargs):
  path.write_bytes(pickle.dumps(data, **kwargs))
  return str(path)


def _expected(raw, columns, setup):
  positives, ignored = revisited.SETUPS[setup]
  rows = []
  for query, ranks in zip(raw['gnd'], columns, strict=True):
    ok, junk = (
      {int(row) for name in names for row in query[name]}
      for names in (positives, ignored)
    )
    if ok:
      rows.append(_loop(ranks.tolist(), ok, junk))
  return {key: np.mean([row[key] for row in rows]) for key in rows[0]}, rows


@pytest.mark.parametrize('distractors', [0, 15])
def test_equals_the_loop(tmp_path, distractors):
  raw = _raw()
  truth = revisited.read_ground_truth(_write(tmp_path / 'gnd.pkl', raw))
  random = np.random.default_rng(7)
  queries = random.normal(size=(5, 6))
  gallery = random.normal(size=(40 + distractors, 6))
  gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
  ranks = np.argsort(-gallery @ queries.T, axis=0)
  for results in (
    revisited.evaluate(queries, gallery, truth),
    revisited.evaluate_ranks(ranks, truth, num_distractors=distractors),
  ):
    assert list(results) == ['easy', 'medium', 'hard']
    for setup, result in results.items():
      expected, rows = _expected(raw, ranks.T, setup)
      assert result.protocol['num_lone_queries'] == 5 - len(rows)
      for name, value in result.metrics.items():
        assert value == pytest.approx(expected[_SHORT[name]], abs=1e-12)
  assert len(_expected(raw, ranks.T, 'easy')[1]) == 4


def test_by_hand():
  # Ranked: junk, ok, no, ok. Without the junk image the positives are at the
  # 0-based ranks 0 and 2: AP = ((1 + 1) / 2 + (1/2 + 2/3) / 2) / 2.
  truth = revisited.GroundTruth(
    tuple('abcd'),
    ('q',),
    np.array([[0.0, 0.0, 1.0, 1.0]]),
    {
      'easy': (np.array([1, 3]),),
      'hard': (np.zeros(0, int),),
      'junk': (np.array([0]),),
    },
  )
  results = revisited.evaluate_ranks(np.arange(4)[:, None], truth)
  assert list(results) == ['easy', 'medium']  # No query has a hard positive.
  for result in results.values():
    assert list(result.metrics.values()) == pytest.approx(
      # The last positive is third: the denominators of mP@5 and mP@10 are 3.
      [(1 + 7 / 12) / 2, 1.0, 2 / 3, 2 / 3]
    )


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('as_lists', [False, True])
def test_reads_every_pickle_protocol(tmp_path, protocol, as_lists):
  raw = _raw()
  if as_lists:
    for query in raw['gnd']:
      query.update(
        {name: query[name].tolist() for name in query if name != 'bbx'}
      )
  path = _write(tmp_path / 'gnd.pkl', raw, protocol=protocol)
  truth = revisited.read_ground_truth(path)
  assert truth.gallery_names == tuple(raw['imlist'])
  assert truth.query_names == tuple(raw['qimlist'])
  assert truth.boxes.tolist() == [[10.5, 20.0, 300.25, 400.0]] * 5
  for name in ('easy', 'hard', 'junk'):
    for found, query in zip(truth.lists[name], raw['gnd'], strict=True):
      np.testing.assert_array_equal(found, np.array(query[name], int))
      assert found.dtype == np.int64


def test_arrays_of_other_orders_and_types(tmp_path):
  arrays = [
    np.arange(6, dtype='>i4').reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.zeros((0, 4), np.uint8),
    np.float32(1.5),
  ]
  for protocol in range(6):
    path = _write(tmp_path / 'arrays.pkl', arrays, protocol=protocol)
    for found, array in zip(safe_pickle.read(path), arrays, strict=True):
      np.testing.assert_array_equal(found, array)


def test_strings_of_python_2(tmp_path):
  # As Python 2 writes str: bytes, of names and of the content of arrays.
  text = b"(dp0\nS'imlist'\np1\n(lp2\nS'a\\xe9'\np3\nas."
  (tmp_path / 'old.pkl').write_bytes(text)
  assert safe_pickle.read(str(tmp_path / 'old.pkl')) == {'imlist': ['aé']}


class _Runs:
  def __init__(self, function, *args):
    self._call = function, args

  def __reduce__(self):
    return self._call


@pytest.mark.parametrize(
  'function, argument, name',
  [
    (os.system, 'touch {}', 'system'),
    (eval, 'open({!r}, "w")', 'eval'),
    (np.load, '{}', 'numpy'),
  ],
)
@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_runs_nothing(tmp_path, function, argument, name, protocol):
  target = tmp_path / 'it_ran'
  raw = _raw()
  raw['extra'] = _Runs(function, argument.format(str(target)))
  path = _write(tmp_path / 'gnd.pkl', raw, protocol=protocol)
  with pytest.raises(InputError, match=f'asks to import .*{name}') as caught:
    revisited.read_ground_truth(path)
  assert '\n' not in str(caught.value)
  assert not target.exists()


def test_shared_lists_are_gone_through_once(tmp_path):
  rows = [1, 2]
  for _ in range(60):  # 2 ** 60 elements, if each were copied.
    rows = [rows, rows]
  path = _write(tmp_path / 'many.pkl', rows)
  assert len(safe_pickle.read(path)) == 2


def test_damaged_files(tmp_path):
  content = pickle.dumps(_raw())
  path = tmp_path / 'gnd.pkl'
  assert pickletools.genops(content)
  for damaged in (b'', b'no pickle', content[:-200], content[200:]):
    path.write_bytes(damaged)
    with pytest.raises(InputError, match='no pickle, or a damaged one'):
      revisited.read_ground_truth(str(path))
  with pytest.raises(InputError, match='cannot be read: No such file'):
    revisited.read_ground_truth(str(tmp_path / 'missing.pkl'))


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda raw: raw.pop('gnd'), 'no ground truth of Revisited'),
    (lambda raw: raw['gnd'].pop(), 'gnd is not as long as qimlist'),
    (lambda raw: raw.update(imlist=[1]), 'imlist is no list of names'),
    (lambda raw: raw['qimlist'].__setitem__(0, 'query_1'), 'repeats a name'),
    (lambda raw: raw['gnd'][2].pop('junk'), r'gnd\[2\] lacks one of'),
    (lambda raw: raw['gnd'][2].update(easy=[40]), r'gnd\[2\]: easy has a row'),
    (lambda raw: raw['gnd'][2].update(easy=[-1]), r'gnd\[2\]: easy has a row'),
    (lambda raw: raw['gnd'][2].update(easy=[0.5]), 'easy is no list of int'),
    (lambda raw: raw['gnd'][0].update(bbx=[5, 5, 5, 9]), r'gnd\[0\]: bbx is'),
    (
      lambda raw: [q.update(easy=[], hard=[]) for q in raw['gnd']],
      'no positives at all',
    ),
  ],
)
def test_other_content(tmp_path, change, words):
  raw = _raw()
  change(raw)
  path = _write(tmp_path / 'gnd.pkl', raw)
  with pytest.raises(InputError, match=words):
    truth = revisited.read_ground_truth(path)
    revisited.evaluate_ranks(np.zeros((1, 5), int), truth)


def test_sizes_that_do_not_fit(tmp_path):
  truth = revisited.read_ground_truth(_write(tmp_path / 'gnd.pkl', _raw()))
  x = np.ones((40, 3))
  with pytest.raises(InputError, match='4 query and 40 gallery embeddings'):
    revisited.evaluate(x[:4], x, truth)
  with pytest.raises(InputError, match='allowed are 5 and at least 40'):
    revisited.evaluate(x[:5], x[:39], truth)
  with pytest.raises(InputError, match=r'ranks has shape \(5, 40\)'):
    revisited.evaluate_ranks(np.zeros((5, 40), int), truth)
  ranks = np.tile(np.arange(40)[:, None], (1, 5))
  assert revisited.evaluate_ranks(ranks, truth)
  for number in (0, 9):
    with pytest.raises(InputError, match=f'has row 50.* at most {39 + number}'):
      revisited.evaluate_ranks(ranks + 11, truth, num_distractors=number)
  for number in (-1, 1.5, None):
    with pytest.raises(InputError, match=f'num_distractors is {number}; '):
      revisited.evaluate_ranks(ranks, truth, num_distractors=number)
  with pytest.raises(InputError, match='ranks has dtype float64'):
    revisited.evaluate_ranks(ranks * 1.0, truth)


@pytest.mark.parametrize('length', [55, 12])
def test_rankings_with_distractors_say_what_to_pass(tmp_path, length):
  truth = revisited.read_ground_truth(_write(tmp_path / 'gnd.pkl', _raw()))
  random = np.random.default_rng(0)
  ranks = np.stack([random.permutation(55) for _ in range(5)], axis=1)
  ranks[0] = 54
  ranks = ranks[:length]
  # 15 are behind the 40 images; a ranking that is cut does not show how many.
  said = '15' if length == 55 else 'their number'
  with pytest.raises(InputError, match=f'num_distractors={said} if') as caught:
    revisited.evaluate_ranks(ranks, truth)
  assert '\n' not in str(caught.value)
  found = revisited.evaluate_ranks(ranks, truth, num_distractors=15)
  for result in found.values():
    assert result.protocol['gallery_size'] == 55
    for sentence in result.protocol['definitions'].values():
      assert ('by the first 12 of 55' in sentence) == (length == 12)


def test_embeddings_may_be_files(tmp_path):
  truth = revisited.read_ground_truth(_write(tmp_path / 'gnd.pkl', _raw()))
  random = np.random.default_rng(7)
  arrays = random.normal(size=(5, 6)), random.normal(size=(40, 6))
  paths = [str(tmp_path / f'{name}.npy') for name in 'qg']
  for path, array in zip(paths, arrays, strict=True):
    np.save(path, array)
  expected = revisited.evaluate(*arrays, truth)
  found = revisited.evaluate(*paths, truth)
  for setup, result in found.items():
    assert result.metrics == expected[setup].metrics
  with pytest.raises(InputError, match='gallery_embeddings has 5 columns'):
    revisited.evaluate(paths[0], arrays[1][:, :5], truth)
