"""Chooses the threshold of an index on labelled images."""

import dataclasses
import logging
import os

import numpy as np

from retrieval_jax import data, neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import printable
from retrieval_jax.neighbors import calibration
from retrieval_jax.training import checkpoint, indexing
from retrieval_jax.training import config as config_lib

_log = logging.getLogger(__name__)


def validation_images(
  model: indexing.Model, workdir: str
) -> data.EvaluationSet:
  """Returns the validation set of a run, as the model sees it.

  Raises:
    InputError: a run without one validation set.
  """
  config = checkpoint.read_config(workdir)
  dataset = data.load_dataset(**config_lib.dataset_options(config))
  if len(dataset.validations) != 1:
    raise InputError(
      f'{workdir} has {len(dataset.validations)} validation sets '
      '(data.validation), of which one is needed to choose a threshold; '
      'the test set is for measuring: give other labelled images by --data'
    )
  (group,) = dataset.validations.values()
  query, gallery = (
    source and dataclasses.replace(source, preprocessing=model.preprocessing)
    for source in (group.query, group.gallery)
  )
  return data.EvaluationSet(query, gallery)


def labelled_images(model: indexing.Model, path: str) -> data.EvaluationSet:
  """Returns labelled images, each to be asked against all others.

  Args:
    model: that sees them.
    path: a folder with a folder for each class, or a table with the columns
      `path` and `label`.

  Raises:
    InputError: for data that cannot be read.
  """
  if os.path.isdir(path):
    collection = data.find_loader('folder')(dir=path)
  else:
    collection = data.find_loader('table')(file=path)
  source = data.Source(
    collection.images,
    collection.labels,
    model.preprocessing,
    boxes=collection.boxes,
  )
  return data.EvaluationSet(source)


def calibrate(
  model: indexing.Model,
  index: neighbors.Index,
  group: data.EvaluationSet,
  *,
  precision: float | None = None,
  false_positive_rate: float | None = None,
  batch_size: int = 64,
) -> calibration.Calibration:
  """Chooses the least similarity at which the nearest image is an answer.

  Args:
    model: that made the index.
    index: whose threshold is wanted; it is not changed.
    group: labelled images, each asked against the others or a gallery.
    precision: of the answers that is wanted; see
      `calibration.threshold_for_precision`.
    false_positive_rate: or the share of queries without a match that may be
      answered; see `calibration.threshold_for_fpr`.
    batch_size: images that are embedded at a time.

  Raises:
    InputError: another model than the index's, or a share that no threshold
      gives.
  """
  index.check_model(model.description)
  embeddings, labels = _embedded(model, group.query, batch_size)
  against = ()
  if group.gallery is not None:
    against = _embedded(model, group.gallery, batch_size)
  best = calibration.best_similarities(embeddings, labels, *against)
  if precision is not None:
    return calibration.threshold_for_precision(*best, precision)
  return calibration.threshold_for_fpr(*best, false_positive_rate)


def save(
  index: neighbors.Index, found: calibration.Calibration, **about: object
) -> None:
  """Keeps a threshold in an index.

  Args:
    index: whose manifest is replaced.
    found: the threshold.
    **about: how it was chosen, for people.
  """
  with neighbors.IndexWriter(
    index.folder, index.manifest, index.manifest
  ) as writer:
    writer.commit(threshold={**found.to_dict(), **about})


def _embedded(model, source, batch_size):
  """Returns (embeddings, labels) of what can be read; logs what cannot."""
  rows, embeddings = [], []
  for part in indexing.embed_source(model, source, batch_size):
    rows.append(part.rows)
    embeddings.append(part.embeddings)
    for reason in part.unreadable.values():
      _log.warning('%s; skipped', printable(reason))
  if not any(map(len, rows)):
    raise InputError(
      f'none of the {len(source)} images to calibrate on can be read; see '
      'above, and give others by --data'
    )
  return np.concatenate(embeddings), source.labels[np.concatenate(rows)]
