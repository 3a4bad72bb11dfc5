"""Google Landmarks v2: mAP@100 of retrieval, and GAP of recognition.

Retrieval: of each query the first 100 predictions count. A prediction that is
repeated is passed over but keeps its rank. The denominator is min(100, number
of images to find), and queries without a prediction score 0.

Recognition: one landmark and score for a test image. GAP (micro-AP) is the
average precision of all predictions in one ranking by score. Images that show
no landmark stay in it and lower the precision; the denominator is the number of
images that show one.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from retrieval_jax.core import tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import definitions
from retrieval_jax.metrics.listed import evaluate_listed
from retrieval_jax.metrics.rankings import evaluate_rankings
from retrieval_jax.metrics.ranks import Ranks
from retrieval_jax.metrics.results import RetrievalResult

METRICS = ('mean_average_precision_at_100',)
RECOGNITION_METRICS = ('gap', 'top_1_accuracy')
_DEFINITIONS = {
  'gap': '(1 / M) sum over all predictions by descending score of P(i) rel(i), '
  'M images that show a landmark; equal scores in the order of the ids',
  'top_1_accuracy': 'share of the images with a landmark whose prediction is '
  'right',
}


class Prediction(NamedTuple):
  """What a model says of a test image.

  Attributes:
    landmark: its number.
    score: the higher, the surer.
  """

  landmark: int
  score: float


class RecognitionResult(NamedTuple):
  """How well landmarks were recognised.

  Attributes:
    gap: global average precision, equal scores in the order of the image's id,
      then of the landmark, as the official code has it.
    expected_gap: the mean over random orders of equal scores.
    range: the lowest and the highest GAP that their order can give.
    top1_accuracy: share of the images with a landmark that are right.
    num_landmark_images: M, the denominator.
    num_predictions: that were ranked.
  """

  gap: float
  expected_gap: float
  range: tuple[float, float]
  top1_accuracy: float
  num_landmark_images: int
  num_predictions: int

  def as_retrieval_result(
    self, right: np.ndarray, protocol: Mapping[str, Any]
  ) -> RetrievalResult:
    """Returns it in the form of all other evaluations.

    Args:
      right: [Q] float64, 1 or 0 for each test image, NaN of one that shows no
        landmark.
      protocol: what the predictions were found by.
    """
    return RetrievalResult(
      metrics={'gap': self.gap, 'top_1_accuracy': self.top1_accuracy},
      ranges={
        'gap': (min(self.range[0], self.gap), max(self.range[1], self.gap))
      },
      protocol={
        **protocol,
        'num_queries': len(right),
        'num_lone_queries': len(right) - self.num_landmark_images,
        'definitions': _DEFINITIONS,
        'warnings': [],
      },
      per_query={'top_1_accuracy': right},
    )


def retrieval(
  predictions: Mapping[str, Sequence[str]],
  solution: Mapping[str, Collection[str]],
  *,
  metrics: tuple[str, ...] = METRICS,
) -> RetrievalResult:
  """Returns the official mAP@100 of predicted lists of images.

  Args:
    predictions: query -> images, best first. A query may be missing.
    solution: query -> images to find; none without any. Queries are in the
      order of the solution in the result.
    metrics: names, see `retrieval_metrics`.

  Raises:
    InputError: for predictions for an image that is no query, or a string in
      place of a list.

  Example:
    Repeated, 'a' keeps rank 2; query 'r' has no prediction.

    >>> retrieval({'q': ['a', 'a', 'x', 'b']}, {'q': ['a', 'b'], 'r': ['c']}
    ...   ).metrics
    {'mean_average_precision_at_100': 0.375}

  References:
    Weyand et al., "Google Landmarks Dataset v2", CVPR 2020, section 5.3.
  """
  unknown = next((q for q in predictions if q not in solution), None)
  if unknown is not None:
    raise InputError(
      f'predictions: {unknown!r} is no query of the solution; allowed are its '
      'queries: leave out images that only recognition asks for'
    )
  _check_lists('predictions', predictions)
  _check_lists('solution', solution)
  numbers: dict[str, int] = {}

  def rows(images: Iterable[str]) -> list[int]:
    return [numbers.setdefault(image, len(numbers)) for image in images]

  return evaluate_rankings(
    [rows(predictions.get(query, ())) for query in solution],
    [rows(images) for images in solution.values()],
    metrics=metrics,
  )


def retrieval_of_embeddings(
  query_embeddings,
  query_ids: Sequence[str],
  index_embeddings,
  index_ids: Sequence[str],
  solution: Mapping[str, Collection[str]],
  *,
  metrics: tuple[str, ...] = METRICS,
  memory_budget_mb: float = 128,
) -> RetrievalResult:
  """Returns mAP@100 of a search by cosine, ties by expectation.

  Args:
    query_embeddings: [Q, D] of the queries of the solution, at least; or, as
      the index, the path of an .npy file.
    query_ids: [Q] their ids; those that the solution lacks are left out.
    index_embeddings: [N, D].
    index_ids: [N] their ids.
    solution: query -> images to find.
    metrics: names, see `retrieval_metrics`.
    memory_budget_mb: see `retrieval_metrics`.

  Raises:
    InputError: if a query or an image to find has no embedding.
  """
  _check_lists('solution', solution)
  query_embeddings = tiles.check_embeddings(
    query_embeddings, 'query_embeddings'
  )
  index_embeddings = tiles.check_embeddings(
    index_embeddings, 'index_embeddings', query_embeddings.shape[1]
  )
  row_of = {image: row for row, image in enumerate(index_ids)}
  row_of_query = {query: row for row, query in enumerate(query_ids)}
  for name, ids, rows, embeddings in (
    ('index_ids', index_ids, row_of, index_embeddings),
    ('query_ids', query_ids, row_of_query, query_embeddings),
  ):
    if not len(ids) == len(rows) == len(embeddings):
      raise InputError(
        f'{name}: {len(ids)} ids, {len(rows)} of them different, for '
        f'{len(embeddings)} embeddings; allowed is one id each: check how they '
        'were gathered'
      )
  missing = [query for query in solution if query not in row_of_query]
  missing += [
    image
    for images in solution.values()
    for image in images
    if image not in row_of
  ]
  if missing:
    raise InputError(
      f'{missing[0]!r} of the solution has no embedding; allowed are '
      'embeddings of all its queries and all images to find: embed the index '
      'and the queries whole'
    )
  picked = [row_of_query[query] for query in solution]
  return evaluate_listed(
    query_embeddings[picked],
    index_embeddings,
    [[row_of[image] for image in images] for images in solution.values()],
    metrics=metrics,
    memory_budget_mb=memory_budget_mb,
  )


def recognition(
  predictions: Mapping[str, Prediction | tuple[int, float]],
  solution: Mapping[str, Collection[int]],
) -> RecognitionResult:
  """Returns the official GAP.

  GAP = (1 / M) sum_i P(i) rel(i) over the predictions by descending score, with
  P(i) the share of right ones among the first i.

  Args:
    predictions: test image -> (landmark, score). An image may be missing.
    solution: test image -> the landmarks that it shows, maybe none.

  Raises:
    InputError: for an image that the solution lacks, a score that is no number,
      or a solution without a landmark.

  Example:
    Image 'b' shows no landmark, but is surest.

    >>> recognition({'a': (1, 0.5), 'b': (1, 0.9), 'c': (2, 0.1)},
    ...             {'a': [1], 'b': [], 'c': [2]}).gap
    0.5833333333333333

  References:
    Weyand et al., CVPR 2020, section 5.2; Perronnin et al., "A family of
    contextual measures of similarity...", CVPR 2009.
  """
  num_positives = sum(bool(landmarks) for landmarks in solution.values())
  if not num_positives:
    raise InputError(
      'solution has no image with a landmark; allowed is at least one: check '
      'that it is that of recognition'
    )
  ranked = []
  for image, (landmark, score) in predictions.items():
    if image not in solution:
      raise InputError(
        f'predictions: {image!r} is not in the solution; allowed are its '
        'images: check the ids'
      )
    if not np.isfinite(score):
      raise InputError(
        f'predictions: the score of {image!r} is {score}; allowed are finite '
        'numbers: look for divergence in the model'
      )
    ranked.append((-score, image, landmark, landmark in solution[image]))
  ranked.sort(key=lambda item: item[:3])
  right = np.array([item[3] for item in ranked], bool)
  places = np.flatnonzero(right) + 1
  gap = float((np.arange(1, len(places) + 1) / places).sum() / num_positives)
  scores = np.array([item[0] for item in ranked])
  values = definitions.evaluate(
    _global_ranks(scores, right, num_positives),
    {'gap': definitions.METRICS['mean_average_precision']},
  )['gap']
  official = np.array([gap])
  definitions.check_invariants(
    {'gap': values, 'official gap': values._replace(expected=official)}
  )
  expected, low, high = (float(array[0]) for array in values)
  return RecognitionResult(
    gap,
    expected,
    (low, high),
    len(places) / num_positives,
    num_positives,
    len(ranked),
  )


def _check_lists(name: str, lists: Mapping[str, Any]) -> None:
  """Raises if a value is a string, whose letters would count as images."""
  for query, images in lists.items():
    if isinstance(images, str):
      raise InputError(
        f'{name}[{query!r}] is the string {images!r}; allowed is a list of '
        f'images: pass {images.split()!r}'
      )


def _global_ranks(scores, right, num_positives):
  """Returns the ranking of all predictions as that of one query.

  Args:
    scores: [n] ascending.
    right: [n] bool.
    num_positives: M; those without a right prediction are never found.
  """
  _, group = np.unique(scores, return_inverse=True)
  wrong = np.bincount(group, ~right, len(scores)).astype(np.int64)
  above = np.cumsum(wrong) - wrong
  hits = np.arange(1.0, num_positives + 1)
  of_hit = group[right]
  ranks = np.full(num_positives, np.inf)
  ranks[: len(of_hit)] = hits[: len(of_hit)] + above[of_hit]
  tied = np.flatnonzero(wrong[of_hit])
  return Ranks(
    np.zeros(1, np.int64),
    np.array([num_positives]),
    hits,
    ranks,
    tied,
    wrong[of_hit][tied],
  )
