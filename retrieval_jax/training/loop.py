"""The loop: trains, measures, saves; stops anywhere and goes on from there."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import ml_collections
import numpy as np

from retrieval_jax import data, metrics
from retrieval_jax.core.errors import InputError
from retrieval_jax.models import pretrained
from retrieval_jax.training import checkpoint as checkpoint_lib
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import (
  config_checks,
  distributed,
  doctor,
  finishing,
  initialising,
  measuring,
  parameter_groups,
  proxy_init,
  report_queries,
  reporting,
  results,
  steps,
  tasks,
)
from retrieval_jax.training import state as state_lib
from retrieval_jax.training.experiment import (
  BuiltStage,
  Experiment,
  make_experiment,
)

# What the best checkpoint is chosen by, the first of these that is measured.
_SCORES = ('mean_average_precision_at_r', 'precision_at_1')

_log = logging.getLogger(__name__)


def train_and_evaluate(
  config: ml_collections.ConfigDict, workdir: str
) -> dict[str, float]:
  """Trains a run to its end, or goes on with it, and measures the result.

  The order of the weights: the workdir's own latest checkpoint; else
  `model.init_from`, with fresh leaves where shapes differ, or
  `model.pretrained`, for the backbone; else the seed.

  Args:
    config: see `configs/default.py`.
    workdir: a new or empty folder, or the one of this very run.

  Returns:
    The metrics of the first test set, {} if the run was asked to stop before
    its last step.

  Raises:
    InputError: a mistake of the user's, or a loss that is not finite.
  """
  checkpoint_lib.check_same_config(workdir, config)
  config_checks.validate(config, jax.device_count())
  resumes = checkpoint_lib.has_checkpoint(workdir)
  # Before the data are loaded, which can take long.
  weights = None if resumes else initialising.read_pretrained(config)
  experiment = make_experiment(config)
  # Before anything is written: weights that do not fit leave no run behind.
  state = None if resumes else _first_state(experiment, weights)
  del weights  # As large as the network.
  is_lead = jax.process_index() == 0
  checkpoint_lib.open_workdir(workdir)
  if is_lead:
    results.describe_run(workdir, config, experiment.dataset)
  with checkpoint_lib.Checkpoints(workdir) as checkpoints:
    if resumes:
      state = _resumed_state(experiment, checkpoints)
    first_step = int(state.step)
    with reporting.Reporter(
      workdir,
      first_step=first_step,
      num_steps=experiment.num_steps,
      is_lead=is_lead,
    ) as reporter:
      if first_step == 0 and is_lead:
        reporter.hyperparameters(config.to_dict())
        reporting.log_parameters(state.params)
        _log.info(
          '%s', parameter_groups.describe(state.params, config.optimizer)
        )
      return _train(experiment, workdir, checkpoints, reporter, state)


def _compiled_step(stage: BuiltStage) -> Callable:
  """Returns (step, state, batch) -> (state, scalars), on the devices.

  What trains the head alone is another program, which does not differentiate
  the backbone.
  """
  programs = {
    head_only: jax.pmap(
      functools.partial(
        steps.train_step,
        task=stage.task,
        optimizer=stage.optimizer,
        schedule=stage.schedule,
        head_only=head_only,
      ),
      axis_name=state_lib.AXIS,
      donate_argnums=(0,),
    )
    for head_only in (False, True)
  }
  plan = stage.plan
  whole_from = plan.first_step + plan.config.optimizer.head_only_steps

  def train_step(step, replicated_state, batch):
    return programs[step < whole_from](replicated_state, batch)

  return train_step


def _diagnosed(
  experiment: Experiment,
  workdir: str,
  state: state_lib.TrainState,
  error: reporting.DivergedError,
) -> InputError:
  """Returns what the doctor finds in a state that stopped at a bad step."""
  step = int(state.step)
  stage = experiment.stage_of(step)
  config, classes = stage.plan.config, config_lib.Classes.of(experiment.dataset)
  diagnosis = doctor.diagnose(
    state,
    stage.load_batch(step),
    stage.load_batch.rows(step),
    stage.train.describe,
    task=tasks.make_task(
      config, classes, stage.task.image_shape, axis_name=None
    ),
    loss_options=config_lib.loss_options(config),
    learning_rate=error.learning_rate,
  )
  several = jax.process_count() > 1
  path = doctor.save(
    diagnosis,
    workdir,
    suffix=f'_process_{jax.process_index()}' if several else '',
  )
  for line in diagnosis.lines:
    _log.info('%s', line)
  return InputError(f'{error}; {diagnosis.sentence()}; the batch is in {path}')


def evaluate(
  config: ml_collections.ConfigDict, workdir: str
) -> dict[str, float]:
  """Measures a run that was trained, and writes results and report.

  Args:
    config: of the run; `eval.*` may differ.
    workdir: of the run.

  Returns:
    The metrics of the first test set.

  Raises:
    InputError: no such run, another config, no checkpoint, or a damaged one.
  """
  checkpoint_lib.read_config(workdir)
  checkpoint_lib.check_same_config(workdir, config)
  experiment = make_experiment(config)
  with checkpoint_lib.Checkpoints(workdir) as checkpoints:
    if checkpoints.latest_step() is None:
      raise InputError(
        f'--workdir={workdir} holds no checkpoint yet; train it first, with '
        '--mode=train'
      )
    finding = finishing.measure(experiment, checkpoints)
  finishing.write(experiment, workdir, finding)
  return finding.metrics


def _first_state(
  experiment: Experiment, weights: pretrained.Weights | None
) -> state_lib.TrainState:
  """Returns the host state of step 0; see `train_and_evaluate`."""
  first, config = experiment.stages[0], experiment.config
  model = config.model
  state = first.initial_state(backbone=weights is None)
  proxies_are_new = True
  if model.init_from:
    state, fresh = initialising.from_run(state, model.init_from, model.name)
    proxies_are_new = 'head/proxies' in fresh
  elif weights is not None:
    state = initialising.from_pretrained(state, weights, model.name)
  if proxies_are_new and config.head.init == 'class_mean':
    state = proxy_init.with_class_means(state, config, first.task, first.train)
  return state


def _resumed_state(
  experiment: Experiment, checkpoints: checkpoint_lib.Checkpoints
) -> state_lib.TrainState:
  """Returns the host state of the latest checkpoint."""
  state = experiment.restore(checkpoints, checkpoints.latest_step())
  done = 'is finished' if state.step >= experiment.num_steps else 'goes on'
  _log.info('the run %s: step %d of %d', done, state.step, experiment.num_steps)
  return state


def _train(
  experiment: Experiment,
  workdir: str,
  checkpoints: checkpoint_lib.Checkpoints,
  reporter: reporting.Reporter,
  state: state_lib.TrainState,
) -> dict[str, float]:
  """Runs the steps that are left; returns the last metrics, or {}."""
  first_step = int(state.step)
  with (
    distributed.catch_stop() as stop,
    contextlib.closing(_train_batches(experiment, first_step)) as batches,
  ):
    for stage in experiment.stages:
      if state.step >= stage.plan.end:
        continue
      if state.step == stage.plan.first_step > 0:
        state = stage.starting_from(state)
      state = _train_stage(
        experiment, stage, workdir, checkpoints, reporter, batches, stop, state
      )
      stopped = distributed.any_process(stop.received)
      if stopped and state.step < experiment.num_steps:
        _log.info(
          'stopped at step %d; run again to go on from there', state.step
        )
        return {}
  step = experiment.num_steps
  finding = finishing.measure(experiment, checkpoints)
  if not experiment.dataset.validations and first_step < step:
    reporter.evaluation(step, {k: e.result for k, e in finding.found.items()})
  reporter.finish()
  for name, page in finishing.write(experiment, workdir, finding).items():
    reporter.image(
      step, f'eval/gallery/{name}', report_queries.gallery_image(page)
    )
  return finding.metrics


def _train_stage(
  experiment: Experiment,
  stage: BuiltStage,
  workdir: str,
  checkpoints: checkpoint_lib.Checkpoints,
  reporter: reporting.Reporter,
  batches: Iterator[dict[str, jax.Array]],
  stop: distributed.StopRequest,
  state: state_lib.TrainState,
) -> state_lib.TrainState:
  """Runs the steps that are left of a stage; returns what was saved last.

  That is the state of its end, or of before if the run was asked to stop.
  """
  config, plan = stage.plan.config, stage.plan
  eval_every = config.eval_every_steps or plan.epoch_steps
  save_every = config.checkpoint_every_steps or plan.epoch_steps
  validations, tests = experiment.dataset.validations, experiment.dataset.tests
  window = reporting.Window(config.loss.name, config.data.batch_size)
  p_train_step = _compiled_step(stage)
  step, replicated_state = int(state.step), experiment.replicate(state)
  while True:
    with window.waiting():
      batch = next(batches)
    replicated_state, scalars = p_train_step(step, replicated_state, batch)
    step += 1
    window.add(step, scalars)
    done = step - plan.first_step
    is_last = step == plan.end
    log_now = is_last or step % config.log_every_steps == 0
    # Processes have to agree, which costs a collective, so not at each step.
    may_stop = log_now or jax.process_count() == 1
    stop_now = may_stop and distributed.any_process(stop.received)
    eval_now = is_last or (done % eval_every == 0 and not stop_now)
    save_now = eval_now or stop_now or done % save_every == 0
    if log_now or save_now:
      try:
        window.check()  # Nothing that diverged is measured or saved.
      except reporting.DivergedError as error:
        state = experiment.unreplicate(replicated_state)
        raise _diagnosed(experiment, workdir, state, error) from error
    if log_now:
      scalars = window.report()
      scalars['unreadable_images'] = experiment.num_unreadable
      reporter.progress(step, scalars)
      reporter.scalars(
        step, {f'train/{name}': value for name, value in scalars.items()}
      )
    if not save_now:
      continue
    paused = time.perf_counter()
    score = None
    # The last step of the run is tested later, if nothing is validated on.
    if eval_now and (validations or step < experiment.num_steps):
      variables = replicated_state.measured()
      found = experiment.evaluator.measure(variables, validations or tests)
      reporter.evaluation(step, {k: e.result for k, e in found.items()})
      if validations:
        score = _score(found)
    state = experiment.unreplicate(replicated_state)
    checkpoints.save(state, score)
    window.exclude(time.perf_counter() - paused)
    if is_last or stop_now:
      return state


def _train_batches(
  experiment: Experiment, first_step: int
) -> Iterator[dict[str, jax.Array]]:
  """Yields the batches from a step on, on the devices ahead of their use."""
  return data.prefetch(
    experiment.load_batch,
    range(first_step, experiment.num_steps),
    state_lib.shard,
  )


def _score(found: Mapping[str, measuring.Evaluation]) -> float:
  """Returns what the best checkpoint is chosen by: a mean over the sets."""
  scores = []
  for evaluation in found.values():
    values = evaluation.result.metrics
    name = next(
      (name for name in _SCORES if name in values), next(iter(values))
    )
    scores.append(metrics.goodness(name, values[name]))
  return float(np.mean(scores))
