"""Does class-level Circle start faster than ArcFace and CosFace, and by what?

    PYTHONPATH=. python benchmarks/harry_claims.py tune
    PYTHONPATH=. python benchmarks/harry_claims.py run
    PYTHONPATH=. python benchmarks/harry_claims.py time
    PYTHONPATH=. python benchmarks/harry_claims_page.py

A small Harry (the pooling, neck and head of configs/harry_landmarks.py on the
small network) learns `glyphs` in equal steps and is asked for classes that it
never sees. `tune` tries the same learning rates for each loss, on validation
classes; `run` trains each arm at its loss's best rate with several seeds and
measures as it goes; `time` measures the steps of all losses and image sizes in
turn, and what the networks are worth before training. All add to
`harry_claims.json`; `tune` and `run` leave out what is there already, and
`--minutes` stops them between two trainings. `harry_claims_page.py` writes the
tables and plots of docs/harry.md from what is there.
"""

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import trainings

from configs import harry_landmarks
from retrieval_jax import data, losses
from retrieval_jax.training import (
  evaluation,
  experiment,
  proxy_init,
  state,
  steps,
)

COLLECTED = trainings.ROOT / 'benchmarks' / 'harry_claims.json'

# As the note has them; Circle's weights with and without a gradient.
LOSSES = {
  'Circle': {
    'name': 'circle_classification',
    'margin': 0.4,
    'scale': 80.0,
    'stop_gradient': True,
  },
  'Circle through weights': {
    'name': 'circle_classification',
    'margin': 0.4,
    'scale': 80.0,
    'stop_gradient': False,
  },
  'ArcFace': {'name': 'arcface', 'margin_deg': 28.6, 'scale': 64.0},
  'CosFace': {'name': 'cosface', 'margin': 0.35, 'scale': 64.0},
}
# Whether a difference is that of the scales.
CONTROLS = {
  'CosFace, scale 30': {'name': 'cosface', 'margin': 0.35, 'scale': 30.0},
}
ALL = LOSSES | CONTROLS


class Rate(NamedTuple):
  """A learning rate that is tried.

  Attributes:
    peak: after the warm-up.
    head: the multiplier of the proxies.
  """

  peak: float
  head: float

  def __str__(self) -> str:
    return f'{self.peak:g} x{self.head:g}'


# Proxies are of length 11: a step of SGD turns them by 1 / 128 of what it turns
# a vector of length 1.
RATES = {
  'adamw': tuple(Rate(peak, 30) for peak in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
  'sgd': (
    *(Rate(peak, 30) for peak in (3e-3, 1e-2, 3e-2, 1e-1)),
    *(Rate(peak, 1000) for peak in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
  ),
}
STARTS = ('normal', 'class_mean', 'head_only')
# Sides of the images, in stages of equally many steps.
SIZES = ((16,), (10, 16))
# Two epochs, and half an epoch.
NUM_STEPS = 160
HEAD_ONLY_STEPS = 40
# When it is measured; the last steps of the stages are among them.
MEASURED = (20, 40, 60, 80, 120, 160)
METRIC = 'recall_at_1'
# Of the test classes, every fifth is asked.
TEST_SHARE = 5


class Arm(NamedTuple):
  """What is trained.

  Attributes:
    optimizer: of `RATES`.
    loss: of `ALL`.
    start: of `STARTS`.
    sizes: of `SIZES`.
  """

  optimizer: str
  loss: str
  start: str = 'normal'
  sizes: tuple[int, ...] = SIZES[0]

  @property
  def key(self) -> str:
    """The name in the file."""
    sizes = '_'.join(map(str, self.sizes))
    return f'{self.optimizer}/{self.loss}/{self.start}/{sizes}'

  def size(self, step: int) -> int:
    """Returns the image size of the step after so many."""
    return self.sizes[step * len(self.sizes) // NUM_STEPS]


# The plain arm with both optimizers, the others with Adam; the first to be
# trained first.
ARMS = tuple(
  Arm(optimizer, loss, start, sizes)
  for optimizer, start, sizes, names in (
    ('adamw', 'normal', SIZES[0], LOSSES),
    ('adamw', 'normal', SIZES[0], CONTROLS),
    ('sgd', 'normal', SIZES[0], LOSSES),
    ('adamw', 'normal', SIZES[1], LOSSES),
    ('adamw', 'class_mean', SIZES[0], LOSSES),
    ('adamw', 'head_only', SIZES[0], LOSSES),
    ('adamw', 'class_mean', SIZES[1], LOSSES),
    ('adamw', 'head_only', SIZES[1], LOSSES),
  )
  for loss in names
)
TUNED = tuple(dict.fromkeys(Arm(arm.optimizer, arm.loss) for arm in ARMS))


def make_config(
  optimizer: str, loss: str, start: str, size: int, seed: int, head: float
) -> ml_collections.ConfigDict:
  """Returns the config of one stage, its learning rate 1."""
  config = harry_landmarks.recipe()
  config.seed = seed
  config.num_train_steps = NUM_STEPS
  config.data.name = 'glyphs'
  config.data.validation = 'classes'
  config.data.batch_size = 128
  config.data.image_size = size
  config.data.mean = config.data.std = (0.5,)
  config.model.name = 'convnet'
  config.model.normalization = 'batch'
  config.model.embedding_dim = 128
  config.loss = ml_collections.ConfigDict(ALL[loss])
  config.head.sharded = False
  config.head.init = 'class_mean' if start == 'class_mean' else 'normal'
  if start == 'head_only':
    config.optimizer.head_only_steps = HEAD_ONLY_STEPS
  config.optimizer.name = optimizer
  config.optimizer.learning_rate = 1.0
  config.optimizer.warmup_steps = 20
  # Nothing is pretrained.
  config.optimizer.backbone_learning_rate_multiplier = 1.0
  config.optimizer.head_learning_rate_multiplier = float(head)
  # Either would hide how large a gradient is, or what a step has changed.
  config.optimizer.clip_norm = None
  config.optimizer.ema_decay = None
  config.eval.metrics = (METRIC,)
  return config


class Chosen(NamedTuple):
  """One of several objectives, chosen when the compiled step is called.

  So one program serves all losses: compiling takes longer than training here.

  Attributes:
    objectives: the losses.
    index: int32 scalar, which of them.
  """

  objectives: tuple[losses.Objective, ...]
  index: jax.Array

  num_views = 1
  shards_classes = False

  def __call__(self, *args, **keywords) -> losses.Outcome:
    """Returns the outcome of the chosen one; see `losses.Objective`."""
    branches = [
      functools.partial(objective, *args, **keywords)
      for objective in self.objectives
    ]
    return jax.lax.switch(self.index, branches)


# What several trainings share is made once.
@functools.cache
def make_experiment(optimizer, start, size, seed, loss='Circle', head=30.0):
  return experiment.make_experiment(
    make_config(optimizer, loss, start, size, seed, head)
  )


@functools.cache
def initialize(optimizer, delayed):
  """Returns the compiled seed -> state of step 0, the same for every loss."""
  start = 'head_only' if delayed else 'normal'
  (stage,) = make_experiment(optimizer, start, SIZES[0][0], 0).stages
  return jax.jit(functools.partial(stage.task.new_state, stage.optimizer))


@functools.cache
def first_state(optimizer, start, size, seed) -> state.TrainState:
  """Returns the state of step 0, on the host."""
  made = make_experiment(optimizer, start, size, seed)
  first = jax.device_get(initialize(optimizer, start == 'head_only')(seed))
  if start == 'class_mean':
    first = proxy_init.with_class_means(
      first, made.config, made.stages[0].task, made.dataset.train
    )
  return first


@functools.cache
def evaluator(size) -> evaluation.Evaluator:
  """Returns what measures, the same for every loss and start."""
  return make_experiment('adamw', 'normal', size, 0).evaluator


@functools.cache
def train_step(optimizer, delayed, size, head_only, head):
  """Returns the compiled (state, batch, loss, rate) -> (state, scalars)."""
  start = 'head_only' if delayed else 'normal'
  made = make_experiment(optimizer, start, size, 0, head=head)
  (stage,) = made.stages
  objectives = tuple(
    make_experiment(optimizer, start, size, 0, loss).stages[0].task.objective
    for loss in ALL
  )

  def step(train_state, batch, loss, rate):
    def schedule(count):
      return rate * stage.schedule(count)

    return steps.train_step(
      train_state,
      batch,
      task=stage.task._replace(objective=Chosen(objectives, loss)),
      optimizer=experiment.make_optimizer(made.config, schedule),
      schedule=schedule,
      head_only=head_only,
    )

  return jax.pmap(
    step, axis_name=state.AXIS, in_axes=(0, 0, None, None), donate_argnums=(0,)
  )


def do_step(arm: Arm, step: int, trained, batch, rate: Rate):
  """Returns the state after a step of an arm."""
  delayed = arm.start == 'head_only'
  head_only = delayed and step < HEAD_ONLY_STEPS
  program = train_step(
    arm.optimizer, delayed, arm.size(step), head_only, rate.head
  )
  loss = np.int32(list(ALL).index(arm.loss))
  return program(trained, batch, loss, np.float32(rate.peak))[0]


def asked(made: experiment.Experiment) -> dict[str, data.EvaluationSet]:
  """Returns the part of the test classes that is asked."""
  groups = {}
  for name, group in made.dataset.tests.items():
    rows = np.flatnonzero(group.query.labels % TEST_SHARE == 0)
    groups[name] = group.subset(rows, rows)
  return groups


def train(
  arm: Arm, rate: Rate, seed: int, *, validate: bool
) -> dict[str, float]:
  """Trains an arm.

  Args:
    arm: what is trained.
    rate: the learning rate.
    seed: of weights and batches.
    validate: whether it is measured on validation classes, not on test classes.

  Returns:
    {step: R@1}, empty from where the training diverged. Images are measured at
    the size that the step before was trained at.
  """
  stages = {
    size: make_experiment(arm.optimizer, arm.start, size, seed)
    for size in arm.sizes
  }
  first = first_state(arm.optimizer, arm.start, arm.sizes[0], seed)
  trained = stages[arm.sizes[0]].replicate(first)
  found = {}
  for step in range(NUM_STEPS):
    made = stages[arm.size(step)]
    batch = state.shard(made.load_batch(step))
    trained = do_step(arm, step, trained, batch, rate)
    if step + 1 in MEASURED:
      if bool(np.asarray(trained.diverged)[0]):
        break
      groups = made.dataset.validations if validate else asked(made)
      measured = evaluator(arm.size(step)).measure(trained.measured(), groups)
      (value,) = (one.result.metrics[METRIC] for one in measured.values())
      found[str(step + 1)] = round(value, 4)
  return found


def collected() -> dict[str, dict[str, Any]]:
  """Returns {'tune' and 'run': {key: {step: R@1}}, 'time': {key: ms}, ...}.

  'untrained' has {size/seed: R@1} of the networks of step 0.
  """
  if COLLECTED.exists():
    return json.loads(COLLECTED.read_text())
  return {'tune': {}, 'run': {}, 'untrained': {}, 'time': {}}


def record(section: str, key: str, value: Any) -> None:
  """Adds one result to the file."""
  found = collected()
  found[section][key] = value
  for name, entries in found.items():
    found[name] = dict(sorted(entries.items()))
  part = COLLECTED.with_suffix('.part')
  part.write_text(json.dumps(found, indent=1) + '\n')
  part.replace(COLLECTED)
  print(section, key, value, flush=True)


def curve(values: Mapping[str, float]) -> np.ndarray:
  """Returns R@1 at `MEASURED`, 0 from where a training diverged."""
  return np.array([values.get(str(step), 0.0) for step in MEASURED])


def tuning(arm: Arm) -> dict[Rate, np.ndarray]:
  """Returns {rate: curve on the validation classes} of what was tried."""
  tried = collected()['tune']
  return {
    rate: curve(tried[f'{arm.key}/{rate}'])
    for rate in RATES[arm.optimizer]
    if f'{arm.key}/{rate}' in tried
  }


def best_rate(arm: Arm) -> Rate | None:
  """Returns the rate that was best at the end, None if some are to be tried."""
  tried = tuning(Arm(arm.optimizer, arm.loss))
  if len(tried) < len(RATES[arm.optimizer]):
    return None
  return max(tried, key=lambda rate: tried[rate][-1])


def todo_of_tuning() -> Iterator[tuple[str, Arm, Rate, int]]:
  for arm in TUNED:
    for rate in RATES[arm.optimizer]:
      yield f'{arm.key}/{rate}', arm, rate, 0


def todo_of_runs(seeds: int) -> Iterator[tuple[str, Arm, Rate, int]]:
  for arm in ARMS:
    rate = best_rate(arm)
    if rate is None:
      print(arm.key, 'has no rate yet: see tune')
      continue
    for seed in range(seeds):
      yield f'{arm.key}/seed_{seed}', arm, rate, seed


def work(section: str, todo, arguments) -> None:
  """Trains what is not in the file yet, until the time is up."""
  deadline = time.monotonic() + 60 * arguments.minutes
  done = collected()[section]
  for key, arm, rate, seed in todo:
    if key in done or not key.startswith(arguments.only):
      continue
    if time.monotonic() > deadline:
      print('the time is up; run again to go on')
      return
    found = train(arm, rate, seed, validate=section == 'tune')
    record(section, key, found)


def measure_times(rounds: int) -> None:
  """Measures the steps of all losses, sizes and parts in turn, in ms.

  Adam's alone: what the optimizer costs is the same for every loss.
  """
  running, rate = {}, RATES['adamw'][1]
  for loss, size, start in itertools.product(LOSSES, SIZES[-1], STARTS[1:]):
    part = 'head' if start == 'head_only' else 'all'
    arm = Arm('adamw', loss, start, (size,))
    made = make_experiment('adamw', start, size, 0)
    trained = made.replicate(first_state('adamw', start, size, 0))
    batch = state.shard(made.load_batch(0))
    running[f'{loss}/{size}/{part}'] = arm, trained, batch
  times = {name: [] for name in running}
  for turn in range(rounds + 1):
    for name, (arm, trained, batch) in running.items():
      began = time.perf_counter()
      trained = jax.block_until_ready(do_step(arm, 0, trained, batch, rate))
      if turn:  # The first one compiles.
        times[name].append(time.perf_counter() - began)
      running[name] = arm, trained, batch
  for name, seconds in times.items():
    record('time', name, round(1e3 * statistics.median(seconds), 2))


def measure_untrained(seeds: int) -> None:
  """Measures what training starts from, whatever the loss and the proxies."""
  for size, seed in itertools.product(SIZES[-1], range(seeds)):
    made = make_experiment('adamw', 'normal', size, seed)
    first = made.replicate(first_state('adamw', 'normal', size, seed))
    measured = evaluator(size).measure(first.measured(), asked(made))
    (value,) = (one.result.metrics[METRIC] for one in measured.values())
    record('untrained', f'{size}/seed_{seed}', round(value, 4))


def seconds_at(arm: Arm) -> np.ndarray:
  """Returns the seconds of training at `MEASURED`.

  A step counts the same for every loss, since what they cost differs by less
  than what the machine does from one moment to the next.
  """
  times = collected()['time']
  head_only = HEAD_ONLY_STEPS if arm.start == 'head_only' else 0
  costs = []
  for step in range(NUM_STEPS):
    kind = f'{arm.size(step)}/{"head" if step < head_only else "all"}'
    costs.append(statistics.median(times[f'{loss}/{kind}'] for loss in LOSSES))
  return np.cumsum(costs)[np.array(MEASURED) - 1] / 1e3


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  for name in ('tune', 'run'):
    runner = commands.add_parser(name)
    runner.add_argument('--minutes', type=float, default=1e6)
    runner.add_argument('--only', default='', help='how the names begin')
  timer = commands.add_parser('time')
  timer.add_argument('--rounds', type=int, default=15)
  for name in ('run', 'time'):
    commands.choices[name].add_argument('--seeds', type=int, default=3)
  arguments = parser.parse_args()
  if arguments.command == 'tune':
    work('tune', todo_of_tuning(), arguments)
  elif arguments.command == 'run':
    work('run', todo_of_runs(arguments.seeds), arguments)
  elif arguments.command == 'time':
    measure_times(arguments.rounds)
    measure_untrained(arguments.seeds)


if __name__ == '__main__':
  main()
