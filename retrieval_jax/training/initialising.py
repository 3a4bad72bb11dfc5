"""The first weights of a run that does not start from its seed alone."""

import collections
import logging
from collections.abc import Sequence

import ml_collections
import numpy as np

from retrieval_jax.core.errors import InputError
from retrieval_jax.models import pretrained
from retrieval_jax.training import checkpoint, state

# Skipped tensors of one kind that are named together.
_MAX_NAMED = 3

# Of a mean or a standard deviation, whose published values are rounded.
_TOLERANCE = 0.005

_log = logging.getLogger(__name__)


def read_pretrained(
  config: ml_collections.ConfigDict,
) -> pretrained.Weights | None:
  """Reads the weights of `model.pretrained`; None if it is not set.

  Says in the log if the config prepares images in another way than those that
  the weights were trained with.

  Raises:
    InputError: see `pretrained.read`.
  """
  model = config.model
  if model.pretrained is None:
    return None
  weights = pretrained.read(
    model.pretrained, model.name, model.pretrained_sha256
  )
  if weights.normalization is not None:
    _compare_normalization(config, weights.normalization)
  return weights


def _compare_normalization(
  config: ml_collections.ConfigDict, trained: pretrained.Normalization
) -> None:
  """Warns if `data.mean` and `data.std` are not those of the weights."""
  for key, theirs in trained._asdict().items():
    ours = tuple(config.data[key])
    # Images with one channel are prepared by one number for all of them.
    wanted = theirs if len(ours) == len(theirs) else (float(np.mean(theirs)),)
    if not np.allclose(ours, wanted, rtol=0, atol=_TOLERANCE):
      _log.warning(
        'data.%s is %s, and the weights of model.pretrained were trained with '
        '%s: unless that is meant, set --config.data.%s="%s"',
        key,
        ours,
        theirs,
        key,
        theirs,
      )


def from_pretrained(
  first: state.TrainState, weights: pretrained.Weights, model: str
) -> state.TrainState:
  """Returns a state with the backbone of other weights.

  All else (neck, head, optimizer) stays as it is.

  Args:
    first: the state of step 0, on the host.
    weights: that were read.
    model: the name of the backbone.

  Raises:
    InputError: the weights are not of this architecture.
  """
  embedder = first.params['embedder']
  variables = {'params': embedder['backbone']}
  if 'backbone' in first.batch_stats:
    variables['batch_stats'] = first.batch_stats['backbone']
  conversion = pretrained.initialise(variables, weights, model)
  _log.info(
    'backbone from %s: %d tensors used, %d skipped%s',
    weights.origin,
    len(conversion.used),
    len(conversion.skipped),
    f' ({_grouped(conversion.skipped)})' if conversion.skipped else '',
  )
  for note in conversion.notes:
    _log.info('%s', note)
  found = conversion.variables
  batch_stats = first.batch_stats
  if 'batch_stats' in found:
    batch_stats = {**batch_stats, 'backbone': found['batch_stats']}
  embedder = {**embedder, 'backbone': found['params']}
  return first.starting_from(
    {**first.params, 'embedder': embedder}, batch_stats
  )


def _grouped(names: Sequence[str]) -> str:
  """Returns names in one line, those that end alike together.

  Example:
    >>> _grouped(['fc.bias', *(f'bn{i}.count' for i in range(9))])
    'fc.bias, 9 of *.count'
  """
  by_ending = collections.defaultdict(list)
  for name in names:
    by_ending[name.rpartition('.')[2]].append(name)
  parts = []
  for ending, group in by_ending.items():
    if len(group) > _MAX_NAMED:
      parts.append(f'{len(group)} of *.{ending}')
    else:
      parts += group
  return ', '.join(parts)


def from_run(
  first: state.TrainState, source: str, model: str
) -> tuple[state.TrainState, list[str]]:
  """Returns a state with the parameters of another run, and what is not of it.

  Args:
    first: the state of step 0, on the host; it keeps the leaves that the other
      run has not, or in another shape.
    source: the workdir of the run.
    model: the name of the backbone, for messages.

  Returns:
    (the state, the names of the parameters that stay as they were).

  Raises:
    InputError: not a run, or one that nothing fits of.
  """
  variables = checkpoint.restore_variables(source)
  params, taken, fresh = state.merge_params(first.params, variables['params'])
  if not taken:
    raise InputError(
      f'model.init_from is {source!r}, of whose parameters none fits {model}; '
      'allowed is a run of the same model'
    )
  batch_stats, _, _ = state.merge_params(
    first.batch_stats, variables['batch_stats']
  )
  _log.info(
    'from %s: took %s; fresh: %s',
    source,
    ', '.join(taken),
    ', '.join(fresh) or 'none',
  )
  return first.starting_from(params, batch_stats), fresh
