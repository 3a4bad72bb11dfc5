"""Writes a model for other programs: `python -m retrieval_jax.export_model`."""

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence

import jax
import numpy as np
import safetensors.numpy

from retrieval_jax import command_line, inference
from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import printable
from retrieval_jax.models import pretrained

WEIGHTS_FILE = 'model.safetensors'
PROGRAM_FILE = 'embedder.jax_export'
ABOUT_FILE = 'model.json'

_DESCRIPTION = """\
Writes the model of a run into a new folder, for other programs:

  model.safetensors     the weights, by names such as
                        params.backbone.conv_0.kernel
  embedder.jax_export   the embedder with its weights, as StableHLO that
                        jax.export.deserialize reads: uint8 images
                        [n, H, W, C] to unit rows [n, D], any n
  model.json            sizes, preprocessing, where it comes from

  python -m retrieval_jax.export_model --workdir=runs/circle --output=exported

Exit status: 0, or 2 where nothing could be done."""


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags.

  Raises:
    InputError: a flag that is unknown, or has no or a wrong value.
  """
  parser = command_line.Parser(
    'python -m retrieval_jax.export_model', _DESCRIPTION
  )
  parser.add_argument('--workdir', required=True, help='folder of the run')
  parser.add_argument('--output', required=True, help='a new folder')
  parser.add_argument(
    '--step',
    type=command_line.natural(0),
    help='a checkpointed step; default: the one that the results are of',
  )
  parser.add_argument(
    '--batch_size',
    type=command_line.natural(1),
    help='write embedder_batch_N.jax_export too, for batches of N alone',
  )
  parser.add_argument(
    '--platforms',
    default='cpu,cuda,tpu',
    help=f'that the programs can run on, of {", ".join(inference.PLATFORMS)}',
  )
  return command_line.parse(parser, argv)


def run(argv: Sequence[str]) -> None:
  """Does what the flags say; raises `InputError` for a user's mistake."""
  flags = parse_flags(argv)
  output = os.path.normpath(flags.output)
  if os.path.lexists(output):
    raise InputError(
      f'--output is {flags.output!r}, which exists; allowed is a new folder: '
      'choose another'
    )
  command_line.check_output_file('--output', output, overwrite=False)
  model = inference.RetrievalModel(flags.workdir, flags.step)
  platforms = [name for name in re.split(r'\W+', flags.platforms) if name]
  programs = {PROGRAM_FILE: model.export(None, platforms)}
  if flags.batch_size is not None:
    name = PROGRAM_FILE.replace('.', f'_batch_{flags.batch_size}.')
    programs[name] = model.export(flags.batch_size, platforms)
  with command_line.writing('--output', output):
    _write(output, model, programs, platforms)
  height, width, channels = model.preprocessing.image_shape
  command_line.echo(
    f'{printable(flags.output)}: images [n, {height}, {width}, {channels}] to '
    f'embeddings [n, {model.embedding_dim}], step {model.description["step"]}'
  )


def _write(
  output: str,
  model: inference.RetrievalModel,
  programs: dict[str, jax.export.Exported],
  platforms: Sequence[str],
) -> None:
  """Writes the folder, whole or not at all."""
  temporary = f'{output}.{os.getpid()}.tmp'
  os.makedirs(temporary)
  try:
    about = _describe(model, platforms)
    weights = pretrained.flat_names(model.variables)
    safetensors.numpy.save_file(
      # It writes the memory of an array as it lies.
      {name: np.asarray(leaf, order='C') for name, leaf in weights.items()},
      os.path.join(temporary, WEIGHTS_FILE),
      metadata=pretrained.OWN_FORMAT,
    )
    for name, program in programs.items():
      with open(os.path.join(temporary, name), 'wb') as file:
        file.write(program.serialize())
    with open(os.path.join(temporary, ABOUT_FILE), 'w') as file:
      file.write(json.dumps(about, indent=2) + '\n')
    os.rename(temporary, output)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def _describe(
  model: inference.RetrievalModel, platforms: Sequence[str]
) -> dict[str, object]:
  # The folder may go anywhere, so it does not say where the run lies here.
  about = {k: v for k, v in model.description.items() if k != 'workdir'}
  config = model.config
  return {
    'model': config.model.name,
    'embedding_dim': model.embedding_dim,
    'image_shape': list(model.preprocessing.image_shape),
    'mean': list(config.data.mean),
    'std': list(config.data.std),
    **about,
    'platforms': list(platforms),
    'jax': jax.__version__,
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status: 0, or 2 for a mistake."""
  return command_line.run_command(run, argv)


if __name__ == '__main__':
  sys.exit(main())
