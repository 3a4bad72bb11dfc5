"""The gallery as TensorBoard's projector shows it: points that one can turn.

Written beside the events of a run, so that TensorBoard finds it: a table of the
embeddings, one of their classes, and one picture with all thumbnails.
"""

import io
import math
import os
from collections.abc import Callable, Sequence

import numpy as np
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins import projector

from retrieval_jax.core import files
from retrieval_jax.training import plots

CONFIG_FILE = 'projector_config.pbtxt'
_FOLDER = 'projector'
_MAX_THUMBNAIL = 64
_MAX_SPRITE = 8192  # The side that browsers take as a texture.


def choose_rows(num_rows: int, num_shown: int) -> np.ndarray:
  """Returns which rows are shown: all, or so many at random, ascending.

  Example:
    >>> choose_rows(3, 5).tolist(), len(choose_rows(5000, 100))
    ([0, 1, 2], 100)
  """
  rng = np.random.default_rng(0)
  return np.sort(rng.permutation(num_rows)[:num_shown])


def write_projection(
  workdir: str,
  name: str,
  embeddings: np.ndarray,
  class_names: Sequence[str],
  images_at: Callable[[np.ndarray], np.ndarray],
) -> None:
  """Writes the points of a set, and where TensorBoard finds those of all sets.

  Args:
    workdir: of the run, where its events are.
    name: of the set; points of the same name are replaced.
    embeddings: [n, D] float.
    class_names: of the rows.
    images_at: rows [m] -> [m, H, W, C] uint8, C = 1 or 3.
  """
  folder = os.path.join(workdir, _FOLDER, name.replace('/', '-'))
  os.makedirs(folder, exist_ok=True)
  table = io.StringIO()
  np.savetxt(table, embeddings, fmt='%.5g', delimiter='\t')
  files.write_text(os.path.join(folder, 'embeddings.tsv'), table.getvalue())
  # One column has no heading; a line end would start another row.
  lines = (' '.join(str(name).split()) or '-' for name in class_names)
  files.write_text(os.path.join(folder, 'classes.tsv'), '\n'.join(lines) + '\n')
  sprite, width, height = _sprite(len(embeddings), images_at)
  files.write_bytes(os.path.join(folder, 'sprite.png'), sprite)
  _add_to_config(workdir, name, folder, (width, height))


def _sprite(num_images, images_at):
  """Returns (all thumbnails as a PNG, the width of one, its height)."""
  columns = math.ceil(math.sqrt(num_images))
  most = min(_MAX_THUMBNAIL, _MAX_SPRITE // columns)
  height, width = images_at(np.array([0])).shape[1:3]
  scale = min(1.0, most / max(height, width))
  size = max(1, round(width * scale)), max(1, round(height * scale))
  rows = math.ceil(num_images / columns)
  sheet = Image.new('RGB', (columns * size[0], rows * size[1]), 'white')
  for start in range(0, num_images, columns):
    picked = np.arange(start, min(start + columns, num_images))
    for column, image in enumerate(images_at(picked)):
      thumbnail = plots.to_pillow(image).convert('RGB').resize(size)
      place = column * size[0], start // columns * size[1]
      sheet.paste(thumbnail, place)
  content = io.BytesIO()
  sheet.save(content, 'PNG')
  return content.getvalue(), *size


def _add_to_config(workdir, name, folder, thumbnail):
  path = os.path.join(workdir, CONFIG_FILE)
  config = projector.ProjectorConfig()
  if os.path.exists(path):
    with open(path, encoding='utf-8') as file:
      text_format.Parse(file.read(), config)
  kept = [known for known in config.embeddings if known.tensor_name != name]
  del config.embeddings[:]
  config.embeddings.extend(kept)
  entry = config.embeddings.add()
  relative = os.path.relpath(folder, workdir)
  entry.tensor_name = name
  entry.tensor_path = f'{relative}/embeddings.tsv'
  entry.metadata_path = f'{relative}/classes.tsv'
  entry.sprite.image_path = f'{relative}/sprite.png'
  entry.sprite.single_image_dim.extend(thumbnail)
  files.write_text(path, text_format.MessageToString(config))
