"""What post-processing does to a ranking: without, each alone, all together.

Of several views of an image that are fused, so does the number of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from retrieval_jax import metrics, neighbors

Chain = tuple[neighbors.Step, ...]


class Variant(NamedTuple):
  """The metrics of one chain.

  Attributes:
    postprocessing: the names in it; none: the embeddings as they are.
    result: of its ranked lists.
    views: of an image that were embedded, see `views.Views.compared`.
  """

  postprocessing: tuple[str, ...]
  result: metrics.RetrievalResult
  views: str = 'one view'

  def to_dict(self) -> dict[str, Any]:
    """Returns what a results file says of it."""
    return {
      'views': self.views,
      'postprocessing': list(self.postprocessing),
      'metrics': self.result.metrics,
      'protocol': self.result.protocol,
    }


def chains(steps: Sequence[neighbors.Step]) -> list[Chain]:
  """Returns what is compared: nothing, each step alone, and all of them.

  Example:
    >>> steps = neighbors.parse_postprocessing(['pca_whitening', 'diffusion'])
    >>> [[step.name for step in chain] for chain in chains(steps)]
    [[], ['pca_whitening'], ['diffusion'], ['pca_whitening', 'diffusion']]
  """
  alone = {step.name: (step,) for step in steps}
  together = [tuple(steps)] if len(steps) > 1 else []
  return [(), *alone.values(), *together]


def ablate(
  compared: Sequence[Chain],
  embedded: neighbors.Embedded,
  measure: Callable[[np.ndarray], metrics.RetrievalResult],
  *,
  list_length: int,
  views: str = 'one view',
  left_out: np.ndarray | None = None,
  memory_budget_mb: float = 128,
) -> tuple[Variant, ...]:
  """Measures the lists of each chain, all by the same metrics.

  Args:
    compared: chains, such as of `chains`.
    embedded: queries, gallery, and the training images if a chain needs them.
    measure: takes ranked rows of the gallery [Q, list_length], padded with -1,
      and returns their metrics.
    list_length: of the lists.
    views: of an image that were embedded.
    left_out: [Q, L] rows that are in no list of a query, see `neighbors.rank`.
    memory_budget_mb: MiB of each step.

  Example:
    >>> x = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    >>> options = {'constant_threshold': {'threshold': 0.7}}
    >>> steps = neighbors.parse_postprocessing(list(options), options)
    >>> without, with_threshold = ablate(
    ...   chains(steps), neighbors.Embedded(x, x, exclude_self=True),
    ...   lambda rows: metrics.evaluate_lists(rows, [0, 0, 1, 1]),
    ...   list_length=2)
    >>> without.result.protocol['mean_returned']
    2.0
    >>> with_threshold.result.metrics['returned_precision']
    0.75
  """
  variants = []
  for chain in compared:
    lists = neighbors.rank(
      chain,
      embedded,
      list_length,
      left_out=left_out,
      memory_budget_mb=memory_budget_mb,
    )
    names = tuple(step.name for step in chain)
    variants.append(Variant(names, measure(lists.indices), views))
  return tuple(variants)


def labels(variants: Sequence[Variant]) -> list[str]:
  """Returns what the rows of a table are called.

  Example:
    >>> result = metrics.evaluate_lists([[1], [0]], [5, 5])
    >>> labels([Variant((), result), Variant(('a', 'b'), result)])
    ['none', 'a + b']
    >>> labels([Variant((), result), Variant((), result, 'flip'),
    ...         Variant(('a',), result, 'flip')])
    ['none (one view)', 'none (flip)', 'a (flip)']
  """
  names = [' + '.join(v.postprocessing) or 'none' for v in variants]
  if len({v.views for v in variants}) < 2:
    return names
  return [f'{n} ({v.views})' for n, v in zip(names, variants, strict=True)]


def depth_note(variants: Sequence[Variant]) -> str:
  """Returns a sentence on how much of the gallery the lists are; '' if all.

  Example:
    >>> result = metrics.evaluate_lists([[1], [0]], [5, 5], [5, 5])
    >>> depth_note([Variant((), result)])
    'Of the first 1 of 2 gallery images; what is behind them is not found.'
  """
  if not variants:
    return ''
  protocol = variants[0].result.protocol
  length = protocol['list_length']
  size = protocol['gallery_size'] - protocol.get('self_excluded', False)
  if length >= size:
    return ''
  return (
    f'Of the first {length:,} of {size:,} gallery images; what is behind them '
    'is not found.'
  )


def format_table(variants: Sequence[Variant]) -> str:
  """Returns a Markdown table, a row for each variant, and the depth below.

  Example:
    >>> result = metrics.evaluate_lists([[1], [0]], [5, 5])
    >>> print(format_table([Variant((), result)]))
    | post-processing | precision_at_1 | mean_average_precision_at_1 | \
r_precision | mean_average_precision_at_r |
    |---|---|---|---|---|
    | none | 1.0000 | 1.0000 | 1.0000 | 1.0000 |
  """
  names = dict.fromkeys(n for v in variants for n in v.result.metrics)
  lines = [['post-processing', *names], ['---'] * (len(names) + 1)]
  for label, variant in zip(labels(variants), variants, strict=True):
    values = variant.result.metrics
    lines.append(
      [
        label,
        *(f'{values[n]:.4f}' if n in values else '' for n in names),
      ]
    )
  table = [f'| {" | ".join(line)} |' for line in lines]
  table[1] = f'|{"|".join(lines[1])}|'
  note = depth_note(variants)
  return '\n'.join([*table, *(['', note] if note else [])])
