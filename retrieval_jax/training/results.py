"""What a run leaves behind besides its weights: its own description, the
metrics, the page, and the table in the terminal."""

import json
import os

import ml_collections

from retrieval_jax import data, neighbors
from retrieval_jax.training import checkpoint, evaluation, report, reporting
from retrieval_jax.training import config as config_lib

RESULTS_FILE = 'results.json'
REPORT_FILE = 'report.html'


def describe_run(
  workdir: str, config: ml_collections.ConfigDict, dataset: data.Dataset
) -> None:
  """Writes what the run is: its config, and what its images look like."""
  info = {
    'name': dataset.name,
    'image_shape': list(dataset.image_shape),
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
  found: evaluation.Evaluation,
  step: int,
) -> report.ReportData:
  """Writes `results.json` and `report.html`, and prints the metrics.

  Args:
    workdir: of the run.
    config: of the run.
    dataset: that was measured on.
    found: what was measured.
    step: of the weights that were measured.

  Returns:
    What the page shows.
  """
  results = {
    'config': config.to_dict(),
    'step': step,
    'evaluations': {
      'test': {
        'metrics': found.result.metrics,
        'ranges': found.result.ranges,
        'protocol': found.result.protocol,
      }
    },
  }
  checkpoint.write_text(
    os.path.join(workdir, RESULTS_FILE), json.dumps(results, indent=2) + '\n'
  )
  page = _report_data(workdir, config, dataset, found)
  report.write_report(os.path.join(workdir, REPORT_FILE), page)
  table = reporting.format_results(found.result)
  print(f'{table}\n\n  open {os.path.join(workdir, REPORT_FILE)}', flush=True)
  return page


def _report_data(workdir, config, dataset, found) -> report.ReportData:
  similarities, indices = neighbors.top_k(
    found.query_embeddings,
    found.gallery_embeddings,
    min(10, len(dataset.gallery)),
    memory_budget_mb=config.eval.memory_budget_mb,
  )
  return report.ReportData(
    title=f'{config.loss.name} on {dataset.name}',
    config=config.to_dict(),
    evaluation=found.result,
    history=reporting.read_history(workdir),
    query_embeddings=found.query_embeddings,
    gallery_embeddings=found.gallery_embeddings,
    query_labels=dataset.query.labels,
    gallery_labels=dataset.gallery.labels,
    class_names=dataset.class_names,
    query_images=dataset.query.images_at,
    gallery_images=dataset.gallery.images_at,
    neighbor_indices=indices,
    neighbor_similarities=similarities,
  )
