"""Searches an index by images: `python -m retrieval_jax.search`.

Flags, and the printing of answers; `neighbors.Index.search` does the work and
can be called from Python.
"""

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Sequence

import numpy as np

from retrieval_jax import command_line, neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings, printable

_log = logging.getLogger('retrieval_jax')

_DESCRIPTION = """\
Shows the images of an index that are most similar to others.

  python -m retrieval_jax.search --index=photos.index --query a.jpg b.jpg
  python -m retrieval_jax.search --index=photos.index --query=a.jpg --k=30 \\
      --html=found.html

With a threshold in the index (python -m retrieval_jax.calibrate), a query whose
best image is below it has no match.

Exit status: 0, or 2 where nothing could be done."""

_DEFAULT_K = 10


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags.

  Raises:
    InputError: a flag that is unknown, or has no or a wrong value.
  """
  parser = command_line.Parser('python -m retrieval_jax.search', _DESCRIPTION)
  parser.add_argument('--index', required=True, help='folder of the index')
  parser.add_argument(
    '--query', required=True, nargs='+', action='extend', help='image files'
  )
  parser.add_argument(
    '--k',
    type=command_line.natural(1),
    help=f'images for a query; default: {_DEFAULT_K}, or all if there are less',
  )
  parser.add_argument(
    '--workdir', help='of the run; default: where it was for the index'
  )
  parser.add_argument(
    '--threshold',
    type=_similarity,
    default=argparse.SUPPRESS,
    help="least similarity of a match, from -1 to 1, or 'off'; default: that "
    'of the index',
  )
  parser.add_argument(
    '--json', action='store_true', help='print a line of JSON for each query'
  )
  parser.add_argument('--html', help='where to write a page with pictures')
  parser.add_argument(
    '--overwrite', action='store_true', help='replace the file of --html'
  )
  # So that names may follow the first one: --query=a.jpg b.jpg.
  parts = [
    arg.split('=', 1) if arg.startswith('--query=') else [arg] for arg in argv
  ]
  return command_line.parse(parser, sum(parts, []))


def run(argv: Sequence[str]) -> None:
  """Does what the flags say; raises `InputError` for a user's mistake."""
  flags = parse_flags(argv)
  if flags.html is not None:
    command_line.check_output_file('--html', flags.html, flags.overwrite)
  index = neighbors.Index.open(flags.index)
  if not index.manifest.complete:
    _log.warning(
      '%s is not complete: `python -m retrieval_jax.embed` was stopped after '
      '%d images, run it again to go on',
      printable(flags.index),
      len(index),
    )
  threshold = getattr(flags, 'threshold', index.threshold)
  # Imported here: what a mistake in the flags does not wait for.
  from retrieval_jax import inference
  from retrieval_jax.training import indexing, search_page

  model = inference.load_model_of(index, flags.workdir)
  queries = Strings.of(map(os.path.abspath, flags.query))
  embeddings, readable = [], []
  for part in indexing.embed_source(
    model, indexing.file_source(model, queries)
  ):
    embeddings.append(part.embeddings)
    readable.extend(part.rows.tolist())
    for reason in part.unreadable.values():
      _log.warning('%s; skipped', printable(reason))
  if not readable:
    raise InputError(
      f'--query names {len(queries)} images, of which none can be read; see '
      'above, and correct the paths'
    )
  k = flags.k or max(1, min(_DEFAULT_K, len(index)))
  similarities, rows = index.search(np.concatenate(embeddings), k)
  answers = [
    search_page.Answer(
      flags.query[query],
      [
        (index.paths[row], similarity)
        for row, similarity in zip(
          rows[i].tolist(), similarities[i].tolist(), strict=True
        )
      ],
      k
      if threshold is None
      else int(np.sum(similarities[i] >= np.float32(threshold))),
    )
    for i, query in enumerate(readable)
  ]
  to_text = _to_json if flags.json else _to_table
  for answer in answers:
    command_line.echo(to_text(answer, threshold))
  if flags.html is not None:
    page = search_page.render_page(
      answers,
      num_images=len(index),
      threshold=threshold,
      facts={
        'Index': os.path.abspath(flags.index),
        'Run': model.description['workdir'],
        'Step': model.description['step'],
        'Threshold': _describe_threshold(threshold, index),
      },
    )
    command_line.write_output('--html', flags.html, page)
    _log.info('pictures: %s', printable(flags.html))


def _similarity(text: str) -> float | None:
  """Reads --threshold."""
  if text == 'off':
    return None
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if -1 <= value <= 1:
    return value
  raise argparse.ArgumentTypeError(
    f"{text!r} is not allowed, but numbers from -1 to 1 and 'off' are"
  )


def _to_json(answer, threshold):
  """Returns an answer as a line of JSON."""
  nearest = [
    {
      'rank': rank,
      'path': path,
      'similarity': round(similarity, 6),
      'is_match': rank <= answer.num_matches,
    }
    for rank, (path, similarity) in enumerate(answer.nearest, 1)
  ]
  return json.dumps(
    {
      'query': answer.query,
      'is_match': answer.num_matches > 0,
      'threshold': threshold,
      'nearest': nearest,
    }
  )


def _to_table(answer, threshold):
  """Returns an answer as lines for a terminal."""
  if not answer.num_matches:
    return (
      f'{printable(answer.query)}: no match (the best has '
      f'{answer.nearest[0][1]:.4f}, below the threshold {threshold:.4f})'
    )
  here = os.getcwd() + os.sep
  lines = [printable(answer.query)]
  for rank, (path, similarity) in enumerate(
    answer.nearest[: answer.num_matches], 1
  ):
    lines.append(
      f'  {rank:>3}  {similarity:.4f}  {printable(path.removeprefix(here))}'
    )
  return '\n'.join(lines)


def _describe_threshold(threshold, index):
  """Returns a threshold and where it is from."""
  if threshold is None:
    return 'none'
  if threshold != index.threshold:
    return f'{threshold:.4f}, given with the search'
  about = index.manifest.threshold
  return f'{threshold:.4f}, {about.get("wanted", "of the index")}'


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status: 0, or 2 for a mistake."""
  return command_line.run_command(run, argv)


if __name__ == '__main__':
  sys.exit(main())
