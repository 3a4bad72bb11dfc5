"""Makes an index of images: `python -m retrieval_jax.embed`.

Flags, and one call: `build_index` of `retrieval_jax.training.indexing` does the
work and can be called from Python.
"""

import argparse
import sys
from collections.abc import Sequence

import tqdm

from retrieval_jax import command_line, neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import printable
from retrieval_jax.data.formats import image_lists
from retrieval_jax.neighbors import index_writer

_DESCRIPTION = """\
Embeds images by a trained model into an index that can be searched.

  python -m retrieval_jax.embed --workdir=runs/circle --images=photos \\
      --output=photos.index
  python -m retrieval_jax.embed --workdir=runs/circle --images=new.csv \\
      --output=photos.index --add
  python -m retrieval_jax.embed --remove=photos/old --output=photos.index

Images that cannot be read are listed in skipped.csv of the index, files that
are equal to others in duplicates.csv. The same command again goes on where it
was stopped, and embeds what has come since.

Exit status: 0, or 2 where nothing could be done."""


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags.

  Raises:
    InputError: a flag that is unknown, or has no or a wrong value, or flags
      that do not go together.
  """
  parser = command_line.Parser('python -m retrieval_jax.embed', _DESCRIPTION)
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument(
    '--images',
    help='a folder, with all below it; a CSV or Parquet file with a column '
    'path; or an image',
  )
  what.add_argument(
    '--remove', help='likewise, of images to be taken out of the index'
  )
  parser.add_argument('--workdir', help='of the run whose model embeds')
  parser.add_argument('--output', required=True, help='folder of the index')
  parser.add_argument(
    '--step', type=command_line.natural(0), help='default: the best, or last'
  )
  how = parser.add_mutually_exclusive_group()
  how.add_argument(
    '--add', action='store_true', help='to an index of other images'
  )
  how.add_argument(
    '--overwrite', action='store_true', help='replace an index of other images'
  )
  parser.add_argument('--batch_size', type=command_line.natural(1), default=64)
  parser.add_argument(
    '--num_threads',
    type=command_line.natural(0),
    default=0,
    help='that read and decode; default: as many as there are cores',
  )
  flags = command_line.parse(parser, argv)
  if flags.images is not None and flags.workdir is None:
    raise InputError(
      '--images is given without --workdir; allowed is it with the folder of '
      'the run whose model embeds: give --workdir'
    )
  if flags.remove is not None and (flags.add or flags.overwrite):
    raise InputError(
      '--remove is given with --add or --overwrite; allowed is one of them: '
      'run one command after the other'
    )
  return flags


def run(argv: Sequence[str]) -> None:
  """Does what the flags say; raises `InputError` for a user's mistake."""
  flags = parse_flags(argv)
  if flags.remove is not None:
    _remove(flags)
    return
  images = image_lists.list_images(flags.images)
  # Imported here: what a mistake in the flags does not wait for.
  from retrieval_jax import inference
  from retrieval_jax.training import indexing

  output = indexing.resolve_output(
    flags.output, images.source, add=flags.add, overwrite=flags.overwrite
  )
  model = inference.RetrievalModel(flags.workdir, flags.step)
  bar = tqdm.tqdm(
    total=len(images.paths),
    unit=' images',
    leave=False,
    disable=not sys.stderr.isatty(),
  )
  try:
    with bar:
      summary = indexing.build_index(
        model,
        images,
        output,
        batch_size=flags.batch_size,
        num_threads=flags.num_threads,
        progress=bar.update,
      )
  except KeyboardInterrupt as stop:
    raise KeyboardInterrupt(_what_is_kept(flags, output)) from stop
  parts = [f'{summary.num_added:,} embedded']
  if summary.num_present:
    parts.append(f'{summary.num_present:,} there before')
  if images.num_repeated:
    parts.append(f'{images.num_repeated:,} listed more than once')
  if summary.skipped:
    parts.append(f'{len(summary.skipped):,} skipped (see skipped.csv in it)')
  if summary.duplicates:
    parts.append(
      f'{len(summary.duplicates):,} the same as others (see duplicates.csv in '
      'it)'
    )
  command_line.echo(
    f'{printable(flags.output)}: {summary.num_images:,} images; '
    f'{", ".join(parts)}'
  )


def _what_is_kept(flags, output) -> str:
  """Says what an embedding that was stopped has left."""
  if index_writer.current_manifest(output.folder) == output.replaces:
    return f'nothing new was embedded, {printable(flags.output)} is as it was'
  # With it, the same command would begin again.
  but = ' without --overwrite' if flags.overwrite else ''
  return (
    f'{printable(flags.output)} has what was embedded so far; the same command'
    f'{but} goes on from there'
  )


def _remove(flags: argparse.Namespace) -> None:
  """Takes images out of an index."""
  from retrieval_jax.training import index_lists, indexing

  index = neighbors.Index.open(flags.output, key='--output')
  rows = indexing.find_rows(index, flags.remove)
  manifest = neighbors.remove_images(index, rows)
  index_lists.write_duplicates(neighbors.Index(flags.output, manifest))
  command_line.echo(
    f'{printable(flags.output)}: {manifest.num_images:,} images; '
    f'{len(rows):,} removed'
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status: 0, or 2 for a mistake."""
  return command_line.run_command(run, argv)


if __name__ == '__main__':
  sys.exit(main())
