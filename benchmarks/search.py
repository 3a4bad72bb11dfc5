"""Exact search beside the flat indexes of faiss: time, memory and recall.

    python benchmarks/search.py [--peer-python PYTHON] [--only WORDS]

A `Searcher` beside an `IndexFlat`: both have their vectors before the time
begins; what that takes is a row of its own. The vectors lie around 5,000
centres and have unit length. The number beside each time is the recall: the
share of the k nearest, as numpy computes them in float64, that was found; what
is equally near up to rounding counts as found. `bf16` is
`first_pass='bfloat16'`, which faiss has not. faiss searches with one thread, as
this project does here. A self-search leaves the row itself out; faiss looks for
one neighbour more.

    python benchmarks/search.py --first-pass

prints instead the recall of the bfloat16 pass for each `oversampling`, also for
vectors that are hard to tell apart: 100 near-duplicates of each of 1,000.
"""

import pathlib
import sys

import numpy as np
import paired

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

DIM = 128
_OVERSAMPLINGS = (1, 2, 4, 8)


def make_data(num_queries, num_gallery, num_centers=5_000, noise=0.7):
  """Returns (queries, gallery), the same array twice without queries."""
  rng = np.random.default_rng(0)
  centers = rng.normal(size=(num_centers, DIM)).astype(np.float32)

  def rows(count):
    drawn = centers[rng.integers(0, len(centers), count)]
    drawn += noise * rng.normal(size=drawn.shape).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

  gallery = rows(num_gallery)
  return (rows(num_queries) if num_queries else gallery), gallery


class Truth:
  """What the k nearest rows are, in float64.

  All rows have unit length, so the order is that of the cosine for every
  distance.
  """

  _ROUNDING = 1e-6

  def __init__(self, queries, gallery, k, exclude_self):
    """Computes the similarity of each query's k-th neighbour."""
    self._queries, self._gallery = queries, gallery
    self._least = np.empty(len(queries))
    for start in range(0, len(queries), 250):
      block = queries[start : start + 250].astype(float)
      similarities = block @ gallery.T.astype(float)
      if exclude_self:
        itself = np.arange(len(block))
        similarities[itself, start + itself] = -np.inf
      similarities.partition(-k, axis=1)
      self._least[start : start + 250] = similarities[:, -k]

  def recall(self, indices):
    """Returns the share of [Q, k] that is among the k nearest."""
    similarities = np.concatenate(
      [
        np.einsum('qd,qkd->qk', q.astype(float), self._gallery[i].astype(float))
        for q, i in zip(
          np.array_split(self._queries, 50),
          np.array_split(indices, 50),
          strict=True,
        )
      ]
    )
    least = self._least[:, None] - self._ROUNDING
    return float((similarities >= least).mean())


def ours(num_queries, num_gallery, k, **options):
  from retrieval_jax import neighbors

  queries, gallery = make_data(num_queries, num_gallery)
  is_self = not num_queries
  truth = Truth(queries, gallery, k, is_self)
  searcher = neighbors.Searcher(gallery, **options)

  def search():
    return searcher.top_k(queries, k, exclude_self=is_self)[1]

  recall = truth.recall(search())
  del truth

  def run():
    search()
    return recall

  return run


def peer(num_queries, num_gallery, k, distance='cosine', first_pass=None):
  import faiss

  del first_pass
  faiss.omp_set_num_threads(1)
  queries, gallery = make_data(num_queries, num_gallery)
  is_self = not num_queries
  truth = Truth(queries, gallery, k, is_self)
  new = faiss.IndexFlatL2 if distance == 'l2' else faiss.IndexFlatIP
  index = new(DIM)
  index.add(gallery)

  def search():
    indices = index.search(queries, k + is_self)[1]
    return indices[:, 1:] if is_self else indices

  recall = truth.recall(search())
  del truth

  def run():
    search()
    return recall

  return run


def ours_ready(num_gallery):
  from retrieval_jax import neighbors

  _, gallery = make_data(0, num_gallery)
  return lambda: len(neighbors.Searcher(gallery))


def peer_ready(num_gallery):
  import faiss

  _, gallery = make_data(0, num_gallery)

  def run():
    index = faiss.IndexFlatIP(DIM)
    index.add(gallery)
    return index.ntotal

  return run


def _case(name, *sizes, **options):
  names = ('num_queries', 'num_gallery', 'k')
  arguments = dict(zip(names, sizes, strict=True)) | options
  return paired.Case(name, ours, peer, arguments)


_BF16 = {'first_pass': 'bfloat16'}
CASES = [
  _case('1,000 x 100,000, k 10', 1_000, 100_000, 10),
  _case('1,000 x 100,000, k 100', 1_000, 100_000, 100),
  _case('1,000 x 100,000, k 10, L2', 1_000, 100_000, 10, distance='l2'),
  _case('1,000 x 100,000, k 10, bf16', 1_000, 100_000, 10, **_BF16),
  _case('1,000 x 100,000, k 100, bf16', 1_000, 100_000, 100, **_BF16),
  _case('1,000 x 10,000, k 10', 1_000, 10_000, 10),
  _case('1 x 100,000, k 10', 1, 100_000, 10),
  _case('10,000 with themselves, k 10', 0, 10_000, 10),
  _case('10,000 with themselves, k 100', 0, 10_000, 100),
  paired.Case(
    '100,000 made ready', ours_ready, peer_ready, {'num_gallery': 100_000}
  ),
]


def first_pass():
  """Prints the recall of the bfloat16 pass for each oversampling."""
  from retrieval_jax import neighbors

  print(
    '| vectors | oversampling | recall@10 | recall@100 |\n|---|---:|---:|---:|'
  )
  for name, options in (
    ('around 5,000 centres', {}),
    ('100 near-duplicates each', {'num_centers': 1_000, 'noise': 0.02}),
  ):
    queries, gallery = make_data(1_000, 100_000, **options)
    truths = {k: Truth(queries, gallery, k, False) for k in (10, 100)}
    searcher = neighbors.Searcher(gallery, **_BF16)
    for oversampling in _OVERSAMPLINGS:
      recalls = [
        truth.recall(searcher.top_k(queries, k, oversampling=oversampling)[1])
        for k, truth in truths.items()
      ]
      cells = name, oversampling, *(f'{recall:.4f}' for recall in recalls)
      print('| ' + ' | '.join(map(str, cells)) + ' |', flush=True)


if __name__ == '__main__':
  if sys.argv[1:] == ['--first-pass']:
    first_pass()
  else:
    paired.main(__file__, CASES, peer='faiss')
