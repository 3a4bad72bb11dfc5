"""A plan as text, which says of each number where it comes from."""

from collections.abc import Mapping, Sequence

from retrieval_jax.training import devices, planner

_MIB = 2**20


def table(
  plans: Sequence[planner.Plan],
  speeds: Mapping[str, devices.Speed],
  utilisation: float,
) -> str:
  """Returns the plans of the stages of a config as lines of text.

  Args:
    plans: one for each stage.
    speeds: of each kind of device, by its name.
    utilisation: share of the peak that is reached, in (0, 1].
  """
  lines = []
  for number, plan in enumerate(plans, start=1):
    if len(plans) > 1:
      lines += [f'stage {number} of {len(plans)}', '']
    for part in (
      _subject(plan),
      _memory(plan),
      _fit(plan),
      _speed(plan, speeds, utilisation),
    ):
      lines += [*part, '']
  if len(plans) > 1:
    lines += [*_total(plans, speeds, utilisation), '']
  return '\n'.join(lines[:-1])


def _total(plans, speeds, utilisation):
  needed = max(plan.step.memory.total for plan in plans)
  fits = 'fit' if needed <= plans[0].budget else 'do NOT fit'
  yield (
    f'all {len(plans)} stages: {sum(plan.num_steps for plan in plans)} steps, '
    f'{needed / _MIB:.1f} MiB at most; they {fits}'
  )
  yield f'{"device":12} {"hours":>9}'
  for name, speed in speeds.items():
    hours = sum(_hours(plan, speed, utilisation) for plan in plans)
    yield f'{name:12} {hours:9.2f}'


def _hours(plan, speed, utilisation):
  return plan.num_steps * _seconds(plan, speed, utilisation) / 3600


def _seconds(plan, speed, utilisation):
  """Returns the seconds of a step."""
  step = plan.step
  return devices.seconds(step.flops, step.traffic, speed, utilisation)


def _subject(plan):
  facts = plan.facts
  height, width, channels = facts.preprocessing.image_shape
  yield (
    f'batch {plan.batch_size} on {plan.num_devices} devices, '
    f'{plan.batch_size // plan.num_devices} images of {height} x {width} x '
    f'{channels} on each'
  )
  yield (
    f'{facts.classes.number} classes, {facts.num_images} images, '
    f'{plan.num_steps} steps'
  )


def _memory(plan):
  memory = plan.step.memory
  yield 'memory of a device                        MiB'
  for name, size in memory.state.items():
    if size:
      yield _row(name, size, 'exact')
  yield _row('batches, 1 in use and 2 ahead', memory.batches, 'exact')
  yield _row('temporary, at the peak of a step', memory.temporary, 'estimate')
  yield _row('  of it gradients, up to', memory.gradients, 'exact')
  if memory.cosines:
    yield _row('  of it each matrix of cosines', memory.cosines, 'exact')
  yield _row(
    'what a compiler adds',
    memory.total
    - sum(memory.state.values())
    - memory.batches
    - memory.temporary,
    f'assumed: {planner.MARGIN - 1:.0%} of the temporary',
  )
  yield _row('total', memory.total, 'estimate')
  for remat, size in plan.temporary.items():
    yield _row(f'temporary with model.remat={remat}', size, 'estimate')


def _row(name, size, source):
  return f'{name:36} {size / _MIB:9.1f}  {source}'


def _fit(plan):
  total, budget = plan.step.memory.total, plan.budget
  fits = 'fits' if total <= budget else 'does NOT fit'
  yield f'batch {plan.batch_size} {fits} into {budget / _MIB:.0f} MiB'
  if not plan.largest_batch:
    yield 'no batch fits'
    return
  yield (
    f'largest batch that fits: {plan.largest_batch}, '
    f'{plan.largest_batch // plan.num_devices} on each device (estimate)'
  )


def _speed(plan, speeds, utilisation):
  step = plan.step
  yield (
    f'a step on each device: {step.flops / 1e12:.3f} TFLOP of convolutions and '
    'matrix'
  )
  yield (
    f'products (counted), {step.traffic / 1e9:.1f} GB read and written '
    '(estimate)'
  )
  yield (
    f'assumed: {utilisation:.0%} of the peak or all of the bandwidth is '
    'reached; no wait'
  )
  yield 'for data or other devices'
  yield (
    f'{"device":12} {"peak TFLOP/s":>12} {"GB/s":>6} {"images/s":>9} '
    f'{"hours":>9}'
  )
  for name, speed in speeds.items():
    time = _seconds(plan, speed, utilisation)
    bandwidth = f'{speed.bandwidth / 1e9:.0f}' if speed.bandwidth else '-'
    yield (
      f'{name:12} {speed.flops / 1e12:12.1f} {bandwidth:>6} '
      f'{plan.batch_size / time:9.0f} {_hours(plan, speed, utilisation):9.2f}'
    )
