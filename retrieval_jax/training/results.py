"""What a run leaves behind besides its weights: its own description, the
metrics, the pages, and the tables in the terminal."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from retrieval_jax import data, neighbors
from retrieval_jax.core import tiles
from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import averages, pairs, uncertainty, verification
from retrieval_jax.training import ablation as ablation_lib
from retrieval_jax.training import (
  checkpoint,
  measuring,
  per_query,
  projector,
  report,
  report_data,
  reporting,
)
from retrieval_jax.training import config as config_lib

REPORT_FILE = 'report.html'
# Rows of each side whose pairs the page shows, unless a metric has all pairs.
_NUM_PAIRED = 3000


class Selection(NamedTuple):
  """Why the weights that were tested are these.

  Attributes:
    step: of the weights.
    sets: the validation sets that chose it; empty: it is the last one.
    score: the mean over those sets that it was best by, or None.
    was_asked: whether a user named the step.
  """

  step: int
  sets: tuple[str, ...]
  score: float | None
  was_asked: bool = False

  def __str__(self) -> str:
    """Says it in a sentence."""
    if self.was_asked:
      return f'weights of step {self.step:,}, which was asked for'
    if not self.sets or self.score is None:
      return f'weights of step {self.step:,}, the last; none was selected'
    return (
      f'weights of step {self.step:,}, the best on {", ".join(self.sets)} '
      f'({self.score:.4f}); the test set had no say'
    )


def describe_run(
  workdir: str, config: ml_collections.ConfigDict, dataset: data.Dataset
) -> None:
  """Writes what the run is: its config, and how pictures become its images."""
  info = {
    'name': dataset.name,
    'preprocessing': dataset.preprocessing.to_dict(),
    'num_classes': dataset.num_classes,
  }
  checkpoint.write_text(
    os.path.join(workdir, checkpoint.CONFIG_FILE), config_lib.to_json(config)
  )
  checkpoint.write_text(
    os.path.join(workdir, checkpoint.DATASET_FILE),
    json.dumps(info, indent=2) + '\n',
  )


def write_results(
  workdir: str,
  config: ml_collections.ConfigDict,
  dataset: data.Dataset,
  found: Mapping[str, measuring.Evaluation],
  selection: Selection,
  ablation: Mapping[str, Sequence[ablation_lib.Variant]],
) -> dict[str, report_data.ReportData]:
  """Writes `results.json`, the values per query and the pages; prints metrics.

  Args:
    workdir: of the run.
    config: of the run.
    dataset: that was measured on.
    found: what was measured, by the name of the test set.
    selection: of the weights that were measured.
    ablation: of post-processing, by the name of the set; may be empty.

  Returns:
    What each page shows, by the name of the test set.
  """
  values = per_query.to_bytes(
    {name: _query_values(dataset, e) for name, e in found.items()}
  )
  means = reporting.means_over_sets({k: e.result for k, e in found.items()})
  results = {
    'config': config.to_dict(),
    'step': selection.step,
    'selection': selection._asdict() | {'sentence': str(selection)},
    'per_query': per_query.checksum(values),
    'evaluations': {
      name: {
        'metrics': measured.result.metrics,
        'ranges': measured.result.ranges,
        'intervals': _intervals(measured),
        'protocol': measured.result.protocol,
      }
      for name, measured in found.items()
    },
    'means': means,
    'ablation': {
      name: [variant.to_dict() for variant in variants]
      for name, variants in ablation.items()
    },
  }
  checkpoint.write_bytes(os.path.join(workdir, per_query.FILE), values)
  checkpoint.write_text(
    os.path.join(workdir, per_query.RESULTS_FILE),
    json.dumps(results, indent=2) + '\n',
  )
  pages = {}
  for name, measured in found.items():
    path = os.path.join(workdir, report_file(name))
    pages[name] = _report_data(
      workdir,
      config,
      dataset,
      name,
      measured,
      selection,
      ablation.get(name, ()),
    )
    report.write_report(path, pages[name])
    _write_projection(workdir, config, name, pages[name])
    table = reporting.format_results(measured.result)
    print(f'{name}: {table}\n\n  open {path}\n', flush=True)
  for name, values in means.items():
    table = reporting.format_values(values)
    print(f'{name}, mean over the data sets:\n{table}\n', flush=True)
  for name, variants in ablation.items():
    table = ablation_lib.format_table(variants)
    print(f'{name}, post-processing:\n\n{table}\n', flush=True)
  print(f'{selection}', flush=True)
  return pages


def _intervals(measured):
  """Returns the 95 % interval of each mean, over queries or over groups."""
  result = measured.result
  samples, intervals = {}, {}
  for name, values in result.per_query.items():
    over, _ = averages.split_name(name)
    samples.setdefault(over, {})[name] = averages.averaged_values(
      name, values, result.groups
    )
  for values in samples.values():
    intervals |= uncertainty.confidence_intervals(values)
  return {name: intervals[name] for name in result.per_query}


def _query_values(dataset, measured) -> per_query.QueryValues:
  query, result = measured.group.query, measured.result
  overs = {averages.split_name(name)[0] for name in result.per_query}
  (classes,), names = dataset.display_classes(query.labels)
  return per_query.QueryValues(
    per_query.unique_names(map(query.identify, range(len(query)))),
    [names[label] for label in classes],
    dict(result.per_query),
    {over: groups for over, groups in result.groups.items() if over in overs},
  )


def report_file(name: str) -> str:
  """Returns the file name of the page of a test set.

  Example:
    >>> report_file('test'), report_file('digits/test'), report_file('hard')
    ('report.html', 'report-digits.html', 'report-hard.html')
  """
  parts = name.split('/')
  if parts[-1] == 'test':
    parts.pop()
  return f'report-{"-".join(parts)}.html' if parts else REPORT_FILE


def _write_projection(workdir, config, name, page) -> None:
  rows = projector.choose_rows(
    len(page.gallery_labels), config.eval.projector_images
  )
  if len(rows):
    projector.write_projection(
      workdir,
      name,
      page.gallery_embeddings[rows],
      [page.class_name(label) for label in page.gallery_labels[rows].tolist()],
      lambda picked: page.gallery_images(rows[picked]),
    )


def _report_data(
  workdir, config, dataset, name, measured, selection, ablation
) -> report_data.ReportData:
  group = measured.group
  exclude_self = group.gallery is None
  similarities, indices = neighbors.rank(
    (),
    neighbors.Embedded(
      measured.query_embeddings, measured.gallery_embeddings, exclude_self
    ),
    min(10, len(group.searched) - exclude_self),
    left_out=measured.removed,
    memory_budget_mb=config.eval.memory_budget_mb,
  )
  labels = group.query.labels, group.searched.labels
  (query_labels, gallery_labels), class_names = dataset.display_classes(*labels)
  # The curves are of the set that was watched while the run was trained.
  watched = name
  if dataset.validations:
    watched = name.removesuffix('test') + 'validation'
  return report_data.ReportData(
    title=f'{config.loss.name} on {dataset.name}',
    config=config.to_dict(),
    evaluation=measured.result,
    history=reporting.read_history(workdir),
    query_embeddings=measured.query_embeddings,
    gallery_embeddings=measured.gallery_embeddings,
    query_labels=query_labels,
    gallery_labels=gallery_labels,
    class_names=class_names,
    query_images=group.query.images_at,
    gallery_images=group.searched.images_at,
    neighbor_indices=indices,
    neighbor_similarities=similarities,
    relevant=measured.are_relevant(indices),
    selection=str(selection),
    watched=watched,
    ablation=ablation,
    **_pairs(config, measured),
  )


def _pairs(config, measured) -> dict[str, Any]:
  """Returns what the page shows of the similarities of pairs."""
  known = measured.result.pairs
  if known is not None and known.operating_points is not None:
    return {'pairs': known}
  group = measured.group
  if group.benchmark:
    note = 'Pairs are not shown: the benchmark judges rankings alone.'
    return {'pairs_note': note}
  query, gallery = (
    projector.choose_rows(len(rows), _NUM_PAIRED)
    for rows in (group.query, group.searched)
  )
  task = pairs.Task(
    measured.query_embeddings[query],
    group.query.labels[query],
    measured.gallery_embeddings[gallery],
    group.searched.labels[gallery],
    self_excluded=group.gallery is None,
    grades=measured.grades,
    budget=tiles.check_memory_budget(config.eval.memory_budget_mb),
    has_ignored=measured.ignored is not None,
  )
  try:
    found = verification.verify(task)
    _ = found.roc  # Raises where all pairs are of one kind.
  except InputError as error:  # One kind, too little memory, or ignored rows.
    return {'pairs_note': f'Pairs are not shown: {error}.'}
  note = ''
  if len(query) < len(group.query) or len(gallery) < len(group.searched):
    note = (
      f'Of {len(query):,} queries and {len(gallery):,} gallery images, '
      'at random.'
    )
  return {'pairs': found, 'pairs_note': note}
