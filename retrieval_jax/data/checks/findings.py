"""What an inspection of a collection found, as data and as a text to read."""

import dataclasses
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from retrieval_jax.core.strings import printable
from retrieval_jax.data.collection import SPLIT_NAMES, Collection

SEVERITIES = ('error', 'warning', 'note')

KINDS = {
  # Pictures and boxes.
  'unreadable_image': ('error', 'the file is missing or cannot be decoded'),
  'empty_box': ('error', 'the box has no area'),
  'box_outside': ('error', 'the box leaves its picture by more than a pixel'),
  'blank_image': ('warning', 'all pixels are of one colour'),
  'tiny_image': (
    'warning',
    'a side is under 16 pixels, or under a tenth of the usual',
  ),
  'extreme_shape': ('warning', 'one side is over five times the other'),
  # One picture in two rows. Blank ones are not counted here.
  'train_test_leak': ('error', 'one picture is trained and tested on'),
  'near_train_test_leak': (
    'error',
    'nearly one picture is trained and tested on',
  ),
  'query_gallery_leak': (
    'error',
    'one picture is a query and a row of the separate gallery',
  ),
  'two_labels': ('error', 'one picture has labels of two classes'),
  'train_validation_leak': (
    'warning',
    'one picture is trained on and validated with',
  ),
  'near_train_validation_leak': (
    'warning',
    'nearly one picture is trained on and validated with',
  ),
  'near_query_gallery': (
    'warning',
    'nearly one picture is a query and a row of the separate gallery',
  ),
  'near_two_labels': (
    'warning',
    'nearly one picture of one part has labels of two classes',
  ),
  'duplicate': ('warning', 'one picture is in two rows of a class and part'),
  'near_duplicate': (
    'warning',
    'nearly one picture is in two rows of a class and part',
  ),
  # Likeness proves little of so few pixels: digits are alike, not copied.
  'small_near_duplicate': (
    'warning',
    'nearly one picture in two rows, of any part or class, a side of it under '
    '64 pixels: may be alike without being copies',
  ),
  'shared_picture': (
    'warning',
    'boxes of one picture are trained and tested on',
  ),
  'repeated_row': ('warning', 'one file and box is in two rows'),
  'incomplete_search': (
    'warning',
    'so many pictures are nearly equal that not all were compared',
  ),
  # Labels, splits and roles.
  'sequence_leak': ('error', 'one sequence is trained and tested on'),
  'query_without_match': (
    'error',
    "no other image that is searched in is of the query's class",
  ),
  # They are left out of the metrics.
  'lone_query': (
    'warning',
    'no other image is of the class, where queries search each other',
  ),
  'lone_class': ('warning', 'the class has one training image, so no pair'),
  'skipped_row': ('warning', 'rows that the loader left out'),
  'empty_class': ('note', 'the class has no image'),
  'label_gap': ('note', 'class numbers that no image has'),
  'shared_class': (
    'note',
    'the class is trained and tested on, as no zero-shot set has it',
  ),
  'unasked_class': ('note', 'no query is of this class of the gallery'),
  'unused_row': ('note', 'the row is not trained on, asked or searched in'),
}
"""What is looked for: how bad it is, and what it says of each item found.

An error is certain, or near enough to make a measurement worthless; a warning
is worth a look, and may be meant; a note is for information.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Finding:
  """One thing that was found, and where.

  Attributes:
    name: one of `KINDS`.
    kind: of the items: 'rows', 'pairs', 'classes', or 'whole' if what was found
      is of the collection as a whole.
    items: [n] int64 rows or labels, or [n, 2] int64 pairs of rows.
    details: remarks on the first items.
    total: how many were found, if that is not n.
  """

  name: str
  kind: str
  items: np.ndarray
  details: tuple[str, ...] = ()
  total: int | None = None

  # Remarks are text, which a million of are too many.
  max_details: ClassVar[int] = 50

  @property
  def count(self) -> int:
    """How many were found."""
    return len(self.items) if self.total is None else self.total

  @property
  def severity(self) -> str:
    """One of `SEVERITIES`."""
    return KINDS[self.name][0]

  @property
  def explanation(self) -> str:
    """What is said of each item."""
    return KINDS[self.name][1]

  def detail(self, index: int) -> str:
    """Returns the remark on an item, or ''."""
    return self.details[index] if index < len(self.details) else ''


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
  """All that an inspection found.

  Attributes:
    name: of the data set.
    listed: what was found, errors first.
    facts: (subject, what is known of it), for people.
    images_per_class: [C] int64.
    num_rows: N, of the collection.
    num_read: the number of pictures that were read.
    near_duplicate_bits: up to which nearly equal pictures were looked for;
      None: they were not.
  """

  name: str
  listed: tuple[Finding, ...]
  facts: tuple[tuple[str, str], ...]
  images_per_class: np.ndarray
  num_rows: int
  num_read: int
  near_duplicate_bits: int | None

  def of(self, severity: str) -> tuple[Finding, ...]:
    """Returns the findings of a severity."""
    return tuple(f for f in self.listed if f.severity == severity)

  def get(self, name: str) -> Finding | None:
    """Returns a finding; None if there is nothing of the kind."""
    return next((f for f in self.listed if f.name == name), None)

  @property
  def verdict(self) -> str:
    """One line: '2 kinds of errors, 1 of warnings, 3 of notes'."""
    counts = [len(self.of(severity)) for severity in SEVERITIES]
    if not any(counts):
      return 'nothing found'
    names = ('error', 'warning', 'note')
    return ', '.join(
      f'{count} {"kind" if count == 1 else "kinds"} of {name}'
      for count, name in zip(counts, names, strict=True)
      if count
    )

  @property
  def scope(self) -> str:
    """One line: what was looked at, and what not."""
    read = f'{self.num_read:,} pictures were read'
    if self.num_read < self.num_rows:
      read = f'{self.num_read:,} of {self.num_rows:,} pictures were read, drawn'
      read += ' at random: faults of the others are not found'
    if self.near_duplicate_bits is None:
      return f'{read}; nearly equal pictures were not looked for.'
    return (
      f'{read}; hashes up to {self.near_duplicate_bits} bits apart were taken '
      'for near duplicates if the pictures correlate.'
    )


def first_details(
  items: np.ndarray, describe: Callable[[Any], str]
) -> tuple[str, ...]:
  """Returns remarks on the first items, as many as a finding keeps."""
  return tuple(map(describe, items[: Finding.max_details].tolist()))


def part_name(collection: Collection, row: int) -> str:
  """Returns where a row is used.

  Example:
    >>> from retrieval_jax.data.sources import ImageArray
    >>> images = ImageArray(np.zeros((2, 1, 1, 1), np.uint8))
    >>> toy = Collection('toy', images, np.zeros(2, int), ('a',),
    ...   split=np.array([0, 2]), is_query=np.array([False, True]),
    ...   is_gallery=np.array([True, False]))
    >>> part_name(toy, 0), part_name(toy, 1)
    ('train and gallery', 'test query')
  """
  split = -1 if collection.split is None else int(collection.split[row])
  if split < 0:
    return ''
  roles = [
    name
    for name, flags in (
      ('query', collection.is_query),
      ('gallery', collection.is_gallery),
    )
    if flags is not None and flags[row]
  ]
  if SPLIT_NAMES[split] == 'train':
    return ' and '.join(['train', *roles])
  return f'{SPLIT_NAMES[split]} {" and ".join(roles)}'.strip()


def class_name(collection: Collection, label: int) -> str:
  """Returns the name of a class, or its number where it has no name."""
  names = collection.class_names
  return names[label] if 0 <= label < len(names) else str(label)


def row_text(collection: Collection, row: int) -> str:
  """Returns a row as one line: its path, its class and where it is used."""
  name = class_name(collection, int(collection.labels[row]))
  about = ', '.join(filter(None, [f'class {name}', part_name(collection, row)]))
  return printable(f'{collection.images.describe(row)} ({about})')


def item_lines(
  finding: Finding, collection: Collection, index: int
) -> Iterator[str]:
  """Yields one line or, for a pair, two that say what item `index` is."""
  detail = finding.detail(index)
  end = f': {printable(detail)}' if detail else ''
  if finding.kind == 'rows':
    yield row_text(collection, int(finding.items[index])) + end
  elif finding.kind == 'classes':
    label = int(finding.items[index])
    yield f'class {printable(class_name(collection, label))}{end}'
  else:
    first, second = finding.items[index].tolist()
    yield row_text(collection, first)
    yield f'= {row_text(collection, second)}{end}'


def format_findings(
  findings: Findings, collection: Collection, num_examples: int = 3
) -> str:
  """Returns the findings as a text of a few screens at most.

  Args:
    findings: of the collection.
    collection: that was inspected.
    num_examples: of each finding.
  """
  width = max((len(name) for name, _ in findings.facts), default=0)
  lines = [findings.name, '']
  lines += [f'  {name:<{width}}  {text}' for name, text in findings.facts]
  lines += ['', *textwrap.wrap(findings.scope, 78)]
  for severity in SEVERITIES:
    listed = findings.of(severity)
    if not listed:
      continue
    lines += ['', f'{severity.capitalize()}s']
    for finding in listed:
      lines.append(
        f'  {finding.name} {finding.count:,}  ({finding.explanation})'
      )
      if finding.kind == 'whole':
        lines += [f'      {printable(detail)}' for detail in finding.details]
        continue
      for i in range(min(num_examples, finding.count)):
        lines += [f'      {x}' for x in item_lines(finding, collection, i)]
      if finding.count > num_examples:
        lines.append(f'      ... and {finding.count - num_examples:,} more')
  return '\n'.join([*lines, '', f'{findings.verdict}.'])
