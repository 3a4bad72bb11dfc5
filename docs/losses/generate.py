"""Writes the pages of the losses, from their registries and docstrings.

    PYTHONPATH=. python docs/losses/generate.py            # the pages
    PYTHONPATH=. python docs/losses/generate.py --plots    # and the pictures

Whatever is said of a loss is said in its docstring, once; what may be set, and
to what, in its row of the registry. `options.md` is written by hand.
"""

import argparse
import dataclasses
import inspect
import pathlib
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from retrieval_jax import losses
from retrieval_jax.losses import contrast, listwise, mining, pair, triplet
from retrieval_jax.losses.proxy import margin_rows, proxy_rows
from retrieval_jax.losses.rows import Loss, Miner, Regularizer

FOLDER = pathlib.Path(__file__).parent
CONFIG = '--config=configs/zero_shot.py'

_MADE = """\
<!-- Made by generate.py: change the docstrings, and run it again. -->
"""
_LETTERS = """\
B are the rows (anchors) on a device, G the candidates they are compared with, D
the dimension of an embedding, C classes, K centres of a class, P positives of a
row. PML is pytorch-metric-learning 2.9, OML open-metric-learning 4.0.
"""
_PAIRS_PLOTTED = """\
The derivative of the loss of one anchor with respect to the cosine of one pair,
computed by `losses.compute` with the default hyperparameters, distance and
reducer. The anchor has the pair that moves and, held fixed, one positive at a
cosine of 0.5 and eight negatives at 0.1; all rows have unit length, and the
anchor is not among its candidates. The moving pair is a positive in one curve
and a negative in the other. A derivative below 0 pulls the pair together, one
above 0 pushes it apart. Where a curve leaves its panel it has no bound at a
cosine of 1 or -1: the slope of the Euclidean distance and that of an angle have
none there, though the gradient of the embeddings has.
"""
_PROXIES_PLOTTED = """\
The derivative of the loss of one row with respect to one cosine, computed by
`losses.compute` with the default hyperparameters and 100 classes of one centre.
In one curve the cosine with the own class moves and all others are 0; in the
other curve that with another class moves, the own cosine is 0.5 and the 98
other ones are 0. A derivative below 0 pulls the row to the class, one above 0
pushes it away.
"""


@dataclasses.dataclass(frozen=True)
class Family:
  """What is on a page.

  Attributes:
    title: of the page.
    intro: what its rows have in common.
    rows: of the registry.
    plotted: what the picture shows; '' for a page without one.
  """

  title: str
  intro: str
  rows: Mapping[str, Loss | Miner | Regularizer]
  plotted: str = ''


FAMILIES: dict[str, Family] = {
  'pair': Family(
    'Losses of pairs',
    'An anchor is compared with the other rows of the batch, and its pairs are '
    'held to thresholds or weighted. A batch needs several images of a class: '
    'set `data.classes_per_batch`.',
    pair.LOSSES,
    _PAIRS_PLOTTED,
  ),
  'triplet': Family(
    'Losses of triplets',
    'A positive and a negative of the same anchor are compared with each '
    'other. A batch needs several images of a class: set '
    '`data.classes_per_batch`.',
    triplet.LOSSES,
    _PAIRS_PLOTTED
    + 'The panels are the default and what is set on top of it.\n',
  ),
  'contrast': Family(
    'Softmax over pairs',
    'The positives of an anchor are told from its negatives by a softmax, or '
    'the whole batch is looked at at once.',
    contrast.LOSSES,
    _PAIRS_PLOTTED
    + 'In `n_pairs` and `instance`, which have one positive an anchor, the one '
    'that moves is the only one. `manifold` and `vicreg` are left out: they '
    'look at no positive or negative pairs. The positives of an anchor compete '
    'in `supcon` and `multi_label_supcon`: the nearer one is pushed away.\n',
  ),
  'listwise': Family(
    'Losses of the ranking',
    'All candidates of an anchor are ranked, and the rank of each positive is '
    'made smooth. They want large batches: `gradient_cache.chunk_size` makes '
    'room.',
    listwise.LOSSES,
    _PAIRS_PLOTTED
    + 'In the far part of a bin that holds no other pair, `fast_ap` pushes a '
    'positive away.\n',
  ),
  'margin_softmax': Family(
    'Softmax with a margin',
    'A row is compared with one learnt proxy a class, or with several, and the '
    'own class has to win by a margin. They need no particular batch.',
    margin_rows.LOSSES,
    _PROXIES_PLOTTED
    + 'The embedding has length 20, each proxy 1, and each class 10 training '
    'images. 20 is the mean length that `adaface` starts from, where its k is '
    '0. State is that of the first step. `combined_margin` leaves its panel at '
    'a cosine of -1, where the slope of the angle has no bound.\n',
  ),
  'proxy': Family(
    'Other losses against proxies',
    'A row is compared with learnt proxies of the classes.',
    proxy_rows.LOSSES,
    _PROXIES_PLOTTED
    + 'In `proxy_anchor` the push is a mean over the classes, and is drawn 100 '
    'times as large.\n',
  ),
  'mining': Family(
    'Miners',
    'A miner says which pairs or triplets of a batch a loss looks at. Any loss '
    'of the kind `pair` takes one; see [options](options.md#miners). None of '
    'them carries a gradient.',
    mining.MINERS,
  ),
  'regularizers': Family(
    'Regularizers',
    'A regularizer is added to a loss, of the embeddings of the batch or of '
    'the proxies; see [options](options.md#regularizers).',
    losses.REGULARIZERS,
  ),
}


@dataclasses.dataclass(frozen=True)
class Docstring:
  """A docstring of Google's style, taken apart.

  Attributes:
    summary: its first line.
    body: Markdown of the paragraphs, formulas among them.
    notes: {'Use it': ..., 'Cost': ..., 'Defaults': ...}, without these words.
    sections: {'Args': ..., 'References': ...}, dedented.
  """

  summary: str
  body: tuple[str, ...]
  notes: Mapping[str, str]
  sections: Mapping[str, str]

  @classmethod
  def of(cls, function: Any) -> 'Docstring':
    """Takes the docstring of a function apart."""
    text = inspect.getdoc(function)
    first, *rest = re.split(r'^(\w+):\n', text, flags=re.M)
    sections = {
      name: textwrap.dedent(content).strip()
      for name, content in zip(rest[::2], rest[1::2], strict=True)
    }
    summary, *paragraphs = re.split(r'\n\n+', first.strip())
    body, notes = [], {}
    for paragraph in paragraphs:
      note = re.match(r'(Use it|Cost:|Defaults:) ', paragraph)
      if note:
        notes[note[1].rstrip(':')] = _joined(paragraph[note.end() :])
      elif paragraph.startswith('  '):
        body.append(f'```text\n{textwrap.dedent(paragraph)}\n```')
      else:
        body.append(_filled(_joined(paragraph)))
    return cls(summary, tuple(body), notes, sections)

  def argument(self, name: str) -> str:
    """Returns what the docstring says of an argument."""
    found = re.search(
      rf'^{name}: (.*\n?(?:  .*\n?)*)', self.sections['Args'], flags=re.M
    )
    return _joined(found[1]) if found else ''


def pages() -> dict[str, str]:
  """Returns {file name: text} of all pages that are made."""
  found = {f'{name}.md': _page(name) for name in FAMILIES}
  return {'README.md': _index(), **found}


def _page(name: str) -> str:
  family = FAMILIES[name]
  links = ', '.join(f'[{row}](#{row})' for row in family.rows)
  parts = [
    f'# {family.title}',
    _MADE,
    _filled(family.intro),
    _filled(f'Here: {links}. [All families](README.md).'),
    _LETTERS,
  ]
  if family.plotted:
    parts += [
      '## The gradient against the cosine',
      f'![Derivative of each loss against the cosine]({name}.png)',
      _filled(_joined(family.plotted)),
    ]
  for row_name, row in family.rows.items():
    parts += _section(row_name, row)
  return _text(parts)


def _section(name: str, row: Loss | Miner | Regularizer) -> Iterator[str]:
  doc = Docstring.of(row.function)
  yield f'## {name}'
  yield _filled(doc.summary)
  yield from doc.body
  use = doc.notes['Use it']
  yield _filled(f'**When to use it.** {use[0].upper()}{use[1:]}')
  if rows := list(_hyperparameters(row, doc)):
    yield _table(('hyperparameter', 'default', 'allowed', 'meaning'), rows)
  yield _table(('', ''), _facts(name, row, doc))
  if 'References' in doc.sections:
    yield _filled('Reference: ' + _joined(doc.sections['References']))


def _hyperparameters(
  row: Loss | Miner | Regularizer, doc: Docstring
) -> Iterator[tuple[str, ...]]:
  defaults = inspect.signature(row.function).parameters
  for name, allowed in row.hyperparameters.items():
    yield (
      f'`{name}`',
      f'`{_shown(defaults[name].default)}`',
      allowed.complaint(object()),
      doc.argument(name),
    )
  if isinstance(row, Loss) and row.kind == 'proxy':
    option, number = row.centers
    # The length of the one proxy of a class is part of such a logit.
    only_one = 'proxy_norms' in row.needs
    yield (
      f'`{option}`',
      f'`{number}`',
      '1' if only_one else 'an integer of at least 1',
      'proxies of a class'
      + ('' if row.separate_centers else ', of which the nearest counts'),
    )


def _facts(
  name: str, row: Loss | Miner | Regularizer, doc: Docstring
) -> Iterator[tuple[str, str]]:
  yield 'cost', doc.notes['Cost']
  if 'Defaults' in doc.notes:
    yield 'defaults from', doc.notes['Defaults']
  if isinstance(row, Loss):
    yield from _facts_of_loss(row, doc)
    more = ' --config.data.views_per_image=2' if row.views == 2 else ''
    yield 'config', f'`{CONFIG}:{name}{more}`'
  elif isinstance(row, Miner):
    yield 'selects', 'pairs' if row.kind == 'pair' else 'triplets'
    yield 'distance', _distance(row)
    yield 'sees', 'all anchors' if row.whole_batch else 'the rows of a device'
    yield 'config', f'`{CONFIG}:triplet_margin --config.miner.name={name}`'
  else:
    yield 'of', ' or '.join(row.kinds)
    kind = {'embeddings': 'embedding', 'proxies': 'weight'}[row.kinds[0]]
    loss = {'embeddings': 'circle', 'proxies': 'soft_triple'}[row.kinds[0]]
    yield (
      'config',
      f'`{CONFIG}:{loss} --config.loss.{kind}_regularizer={name}`',
    )


def _facts_of_loss(row: Loss, doc: Docstring) -> Iterator[tuple[str, str]]:
  kinds = {
    'pair': 'rows of a matrix of pairs',
    'batch': 'the embeddings of the whole batch, alike on every device',
    'proxy': 'cosines with the proxies of the classes',
  }
  yield 'kind', f'`{row.kind}`: {kinds[row.kind]}'
  yield 'reducer', f'`{row.reducer}`; {doc.argument("reducer")}'
  if row.distance is not None:
    yield 'distance', _distance(row)
  yield 'miners', _miners(row, doc)
  if row.kind == 'proxy':
    yield 'sharded head', 'yes' if row.shardable else 'no'
  reads = {
    'norms': 'the length of an embedding',
    'proxy_norms': 'the length of a proxy',
    'class_counts': 'how many training images a class has',
    'relevance': 'label sets',
  }
  if read := [words for need, words in reads.items() if need in row.needs]:
    yield 'reads', ', '.join(read)
  if row.params is not None:
    yield 'learns', doc.argument('params')
  if row.state is not None:
    yield 'keeps', doc.argument('state')


def _miners(row: Loss, doc: Docstring) -> str:
  if row.kind != 'pair':
    return 'none'
  if 'not used' in doc.argument('positives'):
    return 'any, to no effect: it does not look at pairs'
  if row.triplets:
    return 'any; triplets as they are'
  return 'any; of triplets, the pairs that are in one'


def _distance(row: Loss | Miner) -> str:
  distance = row.distance
  text = f'`{distance.name}`'
  if distance.name == 'lp':
    lengths = 'unit rows' if distance.normalize else 'rows as they are'
    text += f' (p={distance.p:g}, power={distance.power:g}, of {lengths})'
  others = [f'`{name}`' for name in row.distances if name != distance.name]
  return text + (f'; also {", ".join(others)}' if others else '')


def _index() -> str:
  rows = [
    (
      f'[{name}]({page}.md#{name})',
      row.kind,
      Docstring.of(row.function).summary,
      _joined(Docstring.of(row.function).sections['References']),
    )
    for page, family in FAMILIES.items()
    for name, row in family.rows.items()
    if isinstance(row, Loss)
  ]
  families = [
    (f'[{family.title}]({page}.md)', str(len(family.rows)), family.intro)
    for page, family in FAMILIES.items()
  ]
  why = inspect.getdoc(losses)
  differences = textwrap.dedent(why[why.index('  * ') :])
  return _text(
    [
      '# Losses',
      _MADE,
      _filled(
        f'The {len(rows)} losses, {len(mining.MINERS)} miners and '
        f'{len(losses.REGULARIZERS)} regularizers, and how they are put '
        'together. Each has its formula, when to use it, what may be set, '
        'where the defaults come from and what it costs.'
      ),
      _filled(
        f'By name from a config: `{CONFIG}:NAME`, hyperparameters as '
        '`--config.loss.KEY=VALUE`. From Python: '
        "`losses.compute('NAME', embeddings, labels, KEY=VALUE)`. "
        '[design.md](../design.md#losses) has the contracts, '
        '[options.md](options.md) what every loss may be combined with.'
      ),
      _table(('page', 'rows', 'what'), families),
      '## Every loss',
      _filled(
        'The kind is what a loss sees: `pair`, rows of a matrix of pairs; '
        '`batch`, the embeddings of the whole batch; `proxy`, cosines with the '
        'proxies of the classes.'
      ),
      _table(('loss', 'kind', 'what', 'paper'), rows),
      '## Where we differ from pytorch-metric-learning, and why',
      'PML is pytorch-metric-learning 2.9.',
      re.sub(r'^\* ', '- ', differences, flags=re.M),
    ]
  )


def _shown(value: object) -> str:
  return f'{value:g}' if isinstance(value, float) else str(value)


def _joined(text: str) -> str:
  # No "<x>", which Markdown takes for a tag of HTML and hides.
  return re.sub(r'<(?=\w)', r'\\<', ' '.join(text.split()))


def _filled(text: str) -> str:
  """Returns the text in lines of 80, none of which begins like a list."""
  text = textwrap.fill(text, 80, break_long_words=False, break_on_hyphens=False)
  return re.sub(r'\n(?=([-+*>#=]|\d+[.)]) )', ' ', text)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  def line(cells):
    return '| ' + ' | '.join(c.replace('|', r'\|') for c in cells) + ' |'

  head = tuple(head)
  return '\n'.join([line(head), '|' + '---|' * len(head), *map(line, rows)])


def _text(parts: Iterable[str]) -> str:
  return '\n\n'.join(part.strip('\n') for part in parts) + '\n'


def main() -> None:
  """Writes the pages, and with --plots the pictures."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--plots', action='store_true', help='draw the pictures as well'
  )
  arguments = parser.parse_args()
  for name, text in pages().items():
    (FOLDER / name).write_text(text)
  if arguments.plots:
    import plots  # Imports matplotlib, which the pages do without.

    for name, family in FAMILIES.items():
      if family.plotted:
        plots.draw(family.rows, FOLDER / f'{name}.png')


if __name__ == '__main__':
  main()
