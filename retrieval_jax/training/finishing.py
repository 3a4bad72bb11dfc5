"""What a run ends with: its weights are chosen, measured and described."""

from typing import Any, NamedTuple

import jax

from retrieval_jax import neighbors
from retrieval_jax.training import ablation as ablation_lib
from retrieval_jax.training import checkpoint as checkpoint_lib
from retrieval_jax.training import measuring, report_data, results, whitening
from retrieval_jax.training import state as state_lib
from retrieval_jax.training.experiment import Experiment


class Finding(NamedTuple):
  """What a trained model is worth.

  Attributes:
    selection: of the weights that were measured.
    layer: the whitening that the model ends with, or None.
    found: what was measured on the test sets, by their names.
    ablation: of post-processing, by the name of the set; may be empty.
  """

  selection: results.Selection
  layer: whitening.Layer | None
  found: dict[str, measuring.Evaluation]
  ablation: dict[str, tuple[ablation_lib.Variant, ...]]

  @property
  def metrics(self) -> dict[str, float]:
    """Those of the first test set."""
    return next(iter(self.found.values())).result.metrics


def measure(
  experiment: Experiment, checkpoints: checkpoint_lib.Checkpoints
) -> Finding:
  """Measures the model of a run on its test sets.

  The weights are those that were best on the validation sets, else the last.
  The test sets have no say.

  Args:
    experiment: of the run.
    checkpoints: of the run, at least one.
  """
  step = checkpoints.selected_step()
  names = tuple(experiment.dataset.validations)
  selection = results.Selection(step, names, checkpoints.score(step))
  state = experiment.restore(checkpoints, step)
  variables, layer = state_lib.replicate(state.measured()), None
  del state  # With its optimizer several times as large as the model.
  if experiment.config.eval.whiten:
    layer = _fit_whitening(experiment, variables)
    variables = {**variables, 'whitening': state_lib.replicate(layer)}
  found = experiment.evaluator.measure(
    variables, experiment.dataset.tests, curves=True
  )
  return Finding(selection, layer, found, _ablate(experiment, variables, found))


def write(
  experiment: Experiment, workdir: str, finding: Finding
) -> dict[str, report_data.ReportData]:
  """Writes what was found, on the first process alone.

  Returns:
    What each page shows, by the name of the test set; {} on other processes.
  """
  if jax.process_index() != 0:
    return {}
  config, dataset = experiment.config, experiment.dataset
  if finding.layer is not None:
    whitening.save(workdir, finding.selection.step, finding.layer)
  # A model that is loaded embeds images as they were measured last.
  results.describe_run(workdir, config, dataset)
  return results.write_results(
    workdir,
    config,
    dataset,
    finding.found,
    finding.selection,
    finding.ablation,
  )


def _fit_whitening(experiment: Experiment, variables: Any) -> whitening.Layer:
  """Returns the whitening of a model's embeddings of the training images."""
  asked = experiment.config.eval
  rows, readable = experiment.evaluator.embed(
    variables, experiment.dataset.train, 'train'
  )
  return whitening.as_layer(
    neighbors.fit_pca_whitening(
      rows[readable],
      **asked.pca_whitening.to_dict(),
      memory_budget_mb=asked.memory_budget_mb,
    )
  )


def _ablate(experiment, variables, found):
  """Measures post-processing on the test sets, and where it can be chosen.

  A chain that is chosen for its result on the test set is no better than an
  epoch that is: the validation sets are measured too.
  """
  if not experiment.config.eval.postprocessing:
    return {}
  validations = experiment.evaluator.measure(
    variables, experiment.dataset.validations
  )
  return experiment.evaluator.ablate(
    variables, {**validations, **found}, experiment.dataset.train
  )
