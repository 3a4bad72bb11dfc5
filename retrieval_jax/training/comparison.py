"""Which of two runs is better, by how much, and whether that is noise."""

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.core.strings import printable
from retrieval_jax.metrics import averages, uncertainty
from retrieval_jax.training import per_query

# What has to be alike for two values to mean the same, as messages call it.
_PROTOCOL = {
  'similarity': 'similarities',
  'relevance': 'relevances',
  'gallery_size': 'numbers of gallery images',
  'self_excluded': 'answers to whether a query is excluded from its ranking',
}
# Options of `eval` that say how an image is seen when it is measured.
_VIEWS = ('flip', 'scales', 'scale_pooling', 'pooling', 'gem_p', 'whiten')


_MEASURE = 'measure the run again with --mode=evaluate'


class RunComparison(NamedTuple):
  """Two runs on the same queries.

  Attributes:
    workdirs: of run A and run B.
    steps: of their weights.
    set_name: that both were measured on.
    by_class: whether classes were drawn, and not queries.
    level: of the intervals.
    num_queries: that were compared: with a match in both, if there are rows.
    num_classes: of these queries.
    rows: by metric, of the means over queries, or over groups of them: the
      `num_queries` of such a row are groups.
    whole: by metric of the whole set, (value of A, value of B).
    warnings: in what the measurements differ, besides the runs.
  """

  workdirs: tuple[str, str]
  steps: tuple[int, int]
  set_name: str
  by_class: bool
  level: float
  num_queries: int
  num_classes: int
  rows: dict[str, uncertainty.Comparison]
  whole: dict[str, tuple[float, float]]
  warnings: list[str]

  @property
  def percent(self) -> str:
    """The level in percent."""
    return f'{100 * self.level:g} %'

  def resampled(self, metric: str) -> str:
    """Returns what was drawn: 'queries', 'classes' or 'categories'."""
    over, _ = averages.split_name(metric)
    if over == 'query' and self.by_class:
      over = 'class'
    return averages.PLURALS[over]

  def is_noise(self, metric: str) -> bool:
    """Whether another sample of queries explains the difference."""
    row = self.rows[metric]
    low, high = row.interval
    return row.p_value > 1 - self.level or low <= 0 <= high

  def sentence(self, metric: str) -> str:
    """Says of one metric which run is better, and whether that is noise."""
    row = self.rows[metric]
    if row.difference == 0:
      return f'A and B have the same {metric}.'
    better, worse = ('B', 'A') if row.difference > 0 else ('A', 'B')
    sign = 1 if row.difference > 0 else -1
    low, high = sorted(sign * end for end in row.interval)
    facts = (
      f'{worse} in {metric} by {abs(row.difference):.4f} ({self.percent} '
      f'interval {low:.4f} to {high:.4f}, p = {row.p_value:.4f})'
    )
    units = self.resampled(metric)
    if self.is_noise(metric):
      return (
        f'{better} is ahead of {facts}, but that may be noise: another sample '
        f'of such {units} could turn it round.'
      )
    return (
      f'{better} is better than {facts}: more than the choice of the {units} '
      'explains.'
    )


def compare_runs(
  workdir_a: str,
  workdir_b: str,
  *,
  set_name: str | None = None,
  names: Sequence[str] = (),
  by_class: bool = False,
  shared_only: bool = False,
  level: float = 0.95,
  seed: int = 0,
) -> RunComparison:
  """Compares two runs that were measured on the same queries.

  Args:
    workdir_a: of a run with results.
    workdir_b: likewise.
    set_name: that both were measured on; None: `test`, or the only one.
    names: of metrics; none: all that both have.
    by_class: whether to draw whole classes, and not queries. A macro average is
      of groups, which are what is drawn of it in any case.
    shared_only: whether to compare on the queries that both have, where one
      has others too.
    level: of the intervals.
    seed: of the resamples.

  Raises:
    InputError: for folders without results, other queries or groups, or names
      that are not there.
  """
  workdirs = workdir_a, workdir_b
  results = [_read_results(workdir) for workdir in workdirs]
  set_name = _choose_set(workdirs, results, set_name)
  found = [result['evaluations'][set_name] for result in results]
  queries = [
    per_query.read(workdir, set_name, result.get('per_query'))
    for workdir, result in zip(workdirs, results, strict=True)
  ]
  places, all_shared = _match(workdirs, queries, shared_only)
  shared = [name for name in queries[0].values if name in queries[1].values]
  # Values of a whole set are of all of its queries.
  whole = [
    name
    for name in found[0]['metrics']
    if name in found[1]['metrics']
    and name not in queries[0].values
    and all_shared
  ]
  if not shared + whole:
    raise InputError(
      f'{printable(workdir_a)} and {printable(workdir_b)} have no metric in '
      'common; allowed are runs with at least one: measure one of them again '
      'with the eval.metrics of the other'
    )
  for name in names:
    if name not in shared + whole:
      raise unknown_name('--metric', name, shared + whole)
  classes = np.array([queries[0].classes[place] for place in places[0]])
  is_matched = np.full(len(classes), True)
  compared = [name for name in names or shared if name in shared]
  for name in compared[:1]:
    for q, place in zip(queries, places, strict=True):
      is_matched &= ~np.isnan(q.values[name][place])
  warnings = _differences([part['protocol'] for part in found], shared + whole)
  warnings += _other_views(results)
  if not all_shared:
    left_out = [len(q.names) - len(places[0]) for q in queries]
    warnings.append(
      f'{left_out[0]:,} queries of A and {left_out[1]:,} of B are not in the '
      'other and were left out'
    )
  return RunComparison(
    workdirs,
    tuple(result['step'] for result in results),
    set_name,
    by_class,
    level,
    int(is_matched.sum()),
    len(np.unique(classes[is_matched])),
    {
      name: uncertainty.compare(
        *_samples(name, queries, places),
        classes
        if by_class and averages.split_name(name)[0] == 'query'
        else None,
        level=level,
        seed=seed,
      )
      for name in compared
    },
    {
      name: tuple(part['metrics'][name] for part in found)
      for name in names or whole
      if name in whole
    },
    warnings,
  )


def _read_results(workdir: str) -> dict[str, Any]:
  path = os.path.join(workdir, per_query.RESULTS_FILE)
  if not os.path.isfile(path):
    raise InputError(
      f'{printable(workdir)} is not the workdir of a run with results: it has '
      f'no {per_query.RESULTS_FILE}; give a folder that training has finished '
      'in'
    )
  try:
    with open(path, encoding='utf-8') as file:
      results = json.load(file)
  except (OSError, ValueError) as error:
    raise InputError(
      f'{printable(path)} is no results file ({error}): {_MEASURE}'
    ) from error
  if not _are_results(results):
    raise InputError(
      f'{printable(path)} is no results file: it lacks a step, or evaluations '
      f'with their metrics and protocol: {_MEASURE}'
    )
  return results


def _are_results(results) -> bool:
  """Returns whether a JSON value has what is read here of `results.json`."""
  if not isinstance(results, dict) or not isinstance(results.get('step'), int):
    return False
  evaluations, config = results.get('evaluations'), results.get('config', {})
  return (
    isinstance(config, dict)
    and isinstance(config.get('eval', {}), dict)
    and isinstance(evaluations, dict)
    and bool(evaluations)
    and all(
      isinstance(found, dict) and isinstance(found.get(part), dict)
      for found in evaluations.values()
      for part in ('metrics', 'protocol')
    )
  )


def _choose_set(workdirs, results, set_name):
  known = [list(result['evaluations']) for result in results]
  if set_name is None:
    set_name = (
      'test' if 'test' in known[0] or len(known[0]) > 1 else known[0][0]
    )
  for workdir, names in zip(workdirs, known, strict=True):
    if set_name not in names:
      raise InputError(
        f'--set={set_name} was not measured in {printable(workdir)}; allowed '
        f'is one of {", ".join(names)}'
      )
  return set_name


def _match(workdirs, queries, shared_only):
  """Returns where the shared queries stand in both, and if that is all."""
  place = [{name: i for i, name in enumerate(q.names)} for q in queries]
  shared = [name for name in queries[0].names if name in place[1]]
  sizes = [len(q.names) for q in queries]
  workdirs = [printable(workdir) for workdir in workdirs]
  all_shared = len(shared) == sizes[0] == sizes[1]
  if not shared or not (all_shared or shared_only):
    cure = (
      f'add --shared_only to compare on these {len(shared):,}'
      if shared
      else 'measure both on the same data'
    )
    raise InputError(
      f'{workdirs[0]} has {sizes[0]:,} queries and {workdirs[1]} {sizes[1]:,}, '
      f'of which {len(shared):,} are the same; allowed are runs on the same '
      f'queries: {cure}'
    )
  for name in shared:
    classes = [q.classes[p[name]] for q, p in zip(queries, place, strict=True)]
    if classes[0] != classes[1]:
      raise InputError(
        f'query {name!r} is of class {classes[0]!r} in {workdirs[0]} and of '
        f'{classes[1]!r} in {workdirs[1]}; allowed are the same queries: '
        'measure both on the same data'
      )
  return [np.array([p[name] for name in shared]) for p in place], all_shared


def _samples(name, queries, places):
  """Returns what the metric of both runs is the mean of, in one order."""
  over, _ = averages.split_name(name)
  values = [q.values[name][p] for q, p in zip(queries, places, strict=True)]
  if over == 'query':
    return values
  groups = [
    q.groups[over].take(place, len(q.names))
    for q, place in zip(queries, places, strict=True)
  ]
  many = averages.PLURALS[over]
  if groups[0].members() != groups[1].members():
    raise InputError(
      f'{name} is a mean over {many}, but the {many} of the queries differ in '
      'the two runs; allowed are the same: measure both on the same data, or '
      'choose other metrics by --metric'
    )
  either_lacks = np.isnan(values[0]) | np.isnan(values[1])
  return [
    averages.averaged_values(
      # The names of the groups may differ between the runs.
      name,
      np.where(either_lacks, np.nan, own),
      {over: groups[0]},
    )
    for own in values
  ]


def _other_views(results):
  a, b = (result.get('config', {}).get('eval', {}) for result in results)
  return [
    f'eval.{key} differs: {a.get(key)} in A, {b.get(key)} in B'
    for key in _VIEWS
    if a.get(key) != b.get(key)
  ]


def _differences(protocols, names):
  warnings = [
    f'the {words} differ: {protocols[0].get(key)} in A, '
    f'{protocols[1].get(key)} in B'
    for key, words in _PROTOCOL.items()
    if protocols[0].get(key) != protocols[1].get(key)
  ]
  definitions = [protocol.get('definitions', {}) for protocol in protocols]
  return warnings + [
    f'{name} is not defined alike: "{definitions[0].get(name)}" in A, '
    f'"{definitions[1].get(name)}" in B'
    for name in names
    if definitions[0].get(name) != definitions[1].get(name)
  ]
