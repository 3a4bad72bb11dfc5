"""The CSV files of Google Landmarks v2: solutions and predictions."""

from typing import Any

from retrieval_jax.core.errors import InputError
from retrieval_jax.core.ground_truth.google_landmarks import (
  Solution,
  read_recognition_solution,
  read_retrieval_solution,
  read_rows,
  row_error,
)
from retrieval_jax.metrics.protocols.google_landmarks import Prediction

__all__ = [
  'Solution',
  'of_part',
  'read_recognition_predictions',
  'read_recognition_solution',
  'read_retrieval_predictions',
  'read_retrieval_solution',
]


def read_retrieval_predictions(path: str) -> dict[str, list[str]]:
  """Reads a submission, id and images: image ids between spaces, best first.

  An image without predictions is left out; for `retrieval` that is the same.

  Raises:
    InputError: for a damaged file.
  """
  rows = read_rows(path, ('id', 'images'))
  return {key: text.split() for _, (key, text) in rows if text.split()}


def read_recognition_predictions(path: str) -> dict[str, Prediction]:
  """Reads a submission, id and landmarks: a landmark and its score.

  Raises:
    InputError: for a damaged file.
  """
  predictions = {}
  for number, (key, text) in read_rows(path, ('id', 'landmarks')):
    if not text.split():
      continue
    try:
      landmark, score = text.split()
      predictions[key] = Prediction(int(landmark), float(score))
    except ValueError as error:
      raise row_error(
        path, number, f'landmarks is {text!r}', 'a landmark and its score'
      ) from error
  return predictions


def of_part(
  predictions: dict[str, Any], part: dict[str, Any], solution: Solution
):
  """Returns the predictions of one part of a solution's images.

  Args:
    predictions: of a submission, which has the images of all parts.
    part: `solution.public`, `solution.private` or `solution.both`.
    solution: that the part is of.

  Raises:
    InputError: for an image that no part has.
  """
  known = solution.both.keys() | solution.ignored
  unknown = next((key for key in predictions if key not in known), None)
  if unknown is not None:
    raise InputError(
      f'predictions: {unknown!r} is no test image of the solution; allowed are '
      'its ids: check that both are of one version'
    )
  return {key: own for key, own in predictions.items() if key in part}
