"""A comparison of two runs, as people and as programs read it."""

import json

from retrieval_jax.core.strings import printable
from retrieval_jax.metrics import averages
from retrieval_jax.training import comparison


def table(found: comparison.RunComparison) -> str:
  """Returns the comparison as a table for the terminal, and in sentences."""
  width = max(map(len, [*found.rows, *found.whole]))
  lines = [
    f'{found.set_name}: {_count(found)}',
    *(
      f'  {letter}  {workdir}  (step {step:,})'
      for letter, workdir, step in zip(
        'AB', found.workdirs, found.steps, strict=True
      )
    ),
    '',
    f'  {"":<{width}}       A       B    B - A  '
    f'{f"{found.percent} interval":>18}       p  better/worse',
  ]
  for name, row in found.rows.items():
    low, high = row.interval
    verdict = 'noise?' if found.is_noise(name) else '?'
    if row.difference == 0:
      verdict = 'equal'
    elif not found.is_noise(name):
      verdict = 'B better' if row.difference > 0 else 'A better'
    lines.append(
      f'  {name:<{width}}  {row.mean_a:.4f}  {row.mean_b:.4f}  '
      f'{row.difference:+.4f}  {low:+.4f} to {high:+.4f}  {row.p_value:.4f}  '
      f'{row.num_better:,}/{row.num_worse:,}  {verdict}{_drawn(found, name)}'
    )
  for name, (a, b) in found.whole.items():
    lines.append(
      f'  {name:<{width}}  {a:.4f}  {b:.4f}  {b - a:+.4f}  of the whole set, '
      'without an interval'
    )
  lines += ['', *(f'warning: {sentence}' for sentence in found.warnings)]
  if found.rows:
    lines.append(found.sentence(next(iter(found.rows))))
  lines.append(
    'Another seed of the training is not in these intervals: compare several '
    'runs of each for that.'
  )
  return '\n'.join(printable(line) for line in lines)


def _count(found):
  matched = ' with a match' if found.rows else ''
  drawn = 'classes' if found.by_class else 'queries'
  return (
    f'{found.num_queries:,} queries{matched}, {found.num_classes:,} classes; '
    f'{drawn} resampled'
  )


def _drawn(found, name):
  """Says what else than of the other metrics was resampled, if so."""
  if averages.split_name(name)[0] == 'query':
    return ''
  number = found.rows[name].num_queries
  return f'  ({number:,} {found.resampled(name)} resampled)'


def to_json(found: comparison.RunComparison) -> str:
  """Returns the comparison as one JSON object."""
  content = {
    'a': {'workdir': found.workdirs[0], 'step': found.steps[0]},
    'b': {'workdir': found.workdirs[1], 'step': found.steps[1]},
    'set': found.set_name,
    'resampled': 'classes' if found.by_class else 'queries',
    'level': found.level,
    'num_queries': found.num_queries,
    'num_classes': found.num_classes,
    'metrics': {name: _row_to_dict(found, name) for name in found.rows},
    'metrics_of_the_set': {
      name: {'value_a': a, 'value_b': b, 'difference': b - a}
      for name, (a, b) in found.whole.items()
    },
    'warnings': found.warnings,
  }
  return json.dumps(content, indent=2)


def _row_to_dict(found, name):
  row = found.rows[name]._asdict()
  over, _ = averages.split_name(name)
  number = row.pop('num_queries')
  return row | {
    f'num_{averages.PLURALS[over]}': number,
    'interval': list(row['interval']),
    'resampled': found.resampled(name),
    'is_noise': found.is_noise(name),
    'sentence': found.sentence(name),
  }
