"""Images that several sets share are embedded once."""

import numpy as np

from retrieval_jax import data
from retrieval_jax.training import embedding


def test_shared_rows_are_embedded_once():
  images = np.arange(10, dtype=np.uint8).repeat(4).reshape(10, 2, 2, 1)
  whole = data.Source.of_array(images, np.zeros(10, np.int32))
  other = data.Source.of_array(images, np.zeros(10, np.int32))
  asked = []

  def embed(source, name):
    rows = source.images_at(np.arange(len(source)))[:, 0, 0, 0].astype(int)
    asked.append((name, rows.tolist()))
    return np.stack([rows, -rows], axis=1).astype(np.float32), rows != 4

  embedded = embedding.EmbeddedOnce(embed)
  part = whole.subset(np.array([7, 4, 2]))
  rest = whole.subset(np.array([1, 2, 9, 7]))
  inside = whole.subset(np.array([9, 4]))
  for source, rows in (
    (part, [7, 4, 2]),
    (rest, [1, 2, 9, 7]),
    (inside, [9, 4]),
    (part, [7, 4, 2]),
    (whole, range(10)),
    (other, range(10)),
  ):
    found, readable = embedded(source, 'set')
    assert found[:, 0].tolist() == list(rows)
    assert found[:, 1].tolist() == [-row for row in rows]
    assert readable.tolist() == [row != 4 for row in rows]
  assert [rows for _, rows in asked] == [
    [7, 4, 2],
    [1, 9],
    [0, 3, 5, 6, 8],
    list(range(10)),  # Another store.
  ]
