"""Exact search beside faiss: time of 1,000 queries, and recall at 10.

    python benchmarks/faiss_index.py [--peer-python PYTHON] [--only NAME]

100,000 unit vectors of dimension 128 around 5,000 centres, and 1,000 queries of
the same kind. The number beside each time is recall@10: the share of the ten
nearest by cosine, as numpy computes them, that was found. IVF and HNSW do not
compare everything. What is needed before the first query (a `Searcher`,
training, the graph) is not in the time.
"""

import numpy as np
import paired

NUM_GALLERY, NUM_QUERIES, DIM, K = 100_000, 1_000, 128, 10


def make_data():
  """Returns (queries, gallery, the K nearest of each query)."""
  rng = np.random.default_rng(0)
  centers = rng.normal(size=(5_000, DIM)).astype(np.float32)

  def rows(count):
    drawn = centers[rng.integers(0, len(centers), count)]
    drawn += 0.7 * rng.normal(size=drawn.shape).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

  gallery, queries = rows(NUM_GALLERY), rows(NUM_QUERIES)
  nearest = [
    np.argsort(-(block @ gallery.T), axis=1)[:, :K]
    for block in np.split(queries, 20)
  ]
  return queries, gallery, np.concatenate(nearest)


def recall(found, nearest):
  """Returns the share of the nearest that was found."""
  return float((found[:, :, None] == nearest[:, None, :]).sum() / nearest.size)


def ours(**_):
  from retrieval_jax import neighbors

  queries, gallery, nearest = make_data()
  searcher = neighbors.Searcher(gallery)
  return lambda: recall(searcher.top_k(queries, K)[1], nearest)


def peer(kind, effort):
  import faiss

  faiss.omp_set_num_threads(1)
  queries, gallery, nearest = make_data()
  inner_product = faiss.METRIC_INNER_PRODUCT
  index = faiss.index_factory(DIM, kind, inner_product)
  index.train(gallery)
  index.add(gallery)
  if kind.startswith('IVF'):
    index.nprobe = effort
  elif kind.startswith('HNSW'):
    index.hnsw.efSearch = effort
  return lambda: recall(index.search(queries, K)[1], nearest)


CASES = [
  paired.Case(name, ours, peer, {'kind': kind, 'effort': effort})
  for name, kind, effort in (
    ('Flat, exact', 'Flat', 0),
    ('IVF of 1,024 cells, 8 looked into', 'IVF1024,Flat', 8),
    ('IVF of 1,024 cells, 64 looked into', 'IVF1024,Flat', 64),
    ('HNSW of 32 links, 64 candidates', 'HNSW32', 64),
    ('HNSW of 32 links, 256 candidates', 'HNSW32', 256),
  )
]

if __name__ == '__main__':
  paired.main(__file__, CASES, peer='faiss')
