"""Drawings of the report: curves, the map of embeddings, framed neighbours.

Each function turns arrays into PNG bytes or pixels and keeps no state, so
`matplotlib.pyplot`, which keeps figures in a global, is not used. Names that
come from users (classes, metrics) are never drawn: the page writes them, where
they wrap, scale and need no font here.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

# Ten hues of one lightness, told apart on white as on near-black.
PALETTE = (
  '#4e79a7',
  '#f28e2b',
  '#59a14f',
  '#e15759',
  '#b07aa1',
  '#17a2a8',
  '#9c755f',
  '#d4a72c',
  '#ff7fa5',
  '#8c8fd6',
)
# What is in none of the ten.
OTHER = '#8d949c'
RIGHT = '#2a8f57'
WRONG = '#d1373f'

# An image up to this size is stored as it is (PNG); a larger one is shrunk to
# the thumbnail size and stored as JPEG, about 4 kB.
_MAX_EXACT_SIZE = 32
_THUMBNAIL_SIZE = 96
_FRAME = 3
_GAP = 4


@dataclasses.dataclass(frozen=True)
class Theme:
  """The colours of a drawing that follow the reader's light or dark mode."""

  background: str
  text: str
  grid: str
  strong: str


LIGHT = Theme('#ffffff', '#57606a', '#e6e8eb', '#1f2328')
DARK = Theme('#171b21', '#a0a9b4', '#2c323a', '#eef1f4')


def data_uri(content: bytes, kind: str) -> str:
  """Returns an image as a URI that carries it, `data:image/<kind>;base64,`."""
  return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'


def encode_image(image: np.ndarray, size: int = _THUMBNAIL_SIZE) -> str:
  """Returns a thumbnail of an image as a data URI.

  Args:
    image: [H, W, C] uint8, C = 1 (grey) or 3 (RGB).
    size: of the square that it has to fit in.

  Returns:
    A PNG of the same pixels up to 32 x 32, else a JPEG of at most size x size.
  """
  buffer = io.BytesIO()
  if max(image.shape[:2]) <= _MAX_EXACT_SIZE:
    to_pillow(image).save(buffer, 'PNG', optimize=True)
    return data_uri(buffer.getvalue(), 'png')
  thumbnail = to_pillow(image)
  thumbnail.thumbnail((size, size))
  thumbnail.save(buffer, 'JPEG', quality=80)
  return data_uri(buffer.getvalue(), 'jpeg')


def principal_components(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Projects rows on the two axes of their largest variance.

  With the centred rows X, X^T X = V diag(v) V^T: the points are the first two
  columns of X V, and axis i explains v_i / sum_j v_j of the variance.

  Args:
    rows: [N, D] float.

  Returns:
    (mean [D], axes [D, 2], explained [2]), float64. The largest entry of an
    axis is positive, since a singular vector is known up to its sign. An axis
    that does not exist (D = 1, or equal rows) is zero.

  Example:
    >>> rows = np.array([[0.0, 0.0, 1.0], [0.0, 4.0, 1.0], [3.0, 2.0, 1.0]])
    >>> mean, axes, explained = principal_components(rows)
    >>> axes.T.round(3).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    >>> explained.round(3).tolist()
    [0.571, 0.429]
  """
  rows = np.asarray(rows, np.float64)
  mean = rows.mean(axis=0)
  centred = rows - mean
  # Of the [D, D] scatter, far quicker than of the rows where N is large.
  vectors, variances, _ = np.linalg.svd(centred.T @ centred, hermitian=True)
  total = variances.sum()
  axes, explained = np.zeros((rows.shape[1], 2)), np.zeros(2)
  for i, variance in enumerate(variances[:2]):
    if variance > 1e-12 * max(total, 1.0):
      largest = np.argmax(np.abs(vectors[:, i]))
      axes[:, i] = vectors[:, i] * np.sign(vectors[largest, i])
      explained[i] = variance / total
  return mean, axes, explained


def unit_rows(rows: np.ndarray) -> np.ndarray:
  """Returns [N, D] float64, rows scaled to unit length; zero stays zero."""
  rows = np.asarray(rows, np.float64)
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  return rows / np.where(norms > 0, norms, 1.0)


def draw_curves(
  curves: Sequence[tuple[np.ndarray, np.ndarray]],
  theme: Theme,
  *,
  upper: float | None = None,
) -> bytes:
  """Draws curves against the training step, the i-th in the i-th hue.

  A long curve is drawn faintly, with its running mean on top. Values that are
  not finite are left out of the curve and marked by a red line at their step.
  The axis is logarithmic where the largest value is positive and 50 times the
  median or more.

  Args:
    curves: (steps [n], values [n]) of each curve.
    theme: the colours.
    upper: the end of the scale, if it has one (1 for the metrics).

  Returns:
    A PNG of 1,058 x 644 pixels.
  """
  figure, axes = new_axes(theme, width=4.6, height=2.8, dpi=230)
  finite_values = [values[np.isfinite(values)] for _, values in curves]
  pooled = np.concatenate([*finite_values, np.zeros(0)])
  if pooled.size and pooled.min() > 0 and pooled.max() > 50 * np.median(pooled):
    axes.set_yscale('log')
  for i, (steps, values) in enumerate(curves):
    color = PALETTE[i % len(PALETTE)]
    finite = np.isfinite(values)
    for step in steps[~finite]:
      axes.axvline(step, color=WRONG, linewidth=1, linestyle=':')
    x, y = steps[finite], values[finite]
    marker = 'o' if len(x) <= 30 else None
    window = len(x) // 25
    if window < 3:
      axes.plot(x, y, color=color, linewidth=1.8, marker=marker, markersize=4)
    else:
      axes.plot(x, y, color=color, linewidth=0.8, alpha=0.35)
      axes.plot(x, _running_mean(y, window), color=color, linewidth=1.8)
  if upper is not None and pooled.size:
    # Room for a marker at the very top.
    room = 0.04 * max(upper - pooled.min(), 1e-3)
    axes.set_ylim(top=min(axes.get_ylim()[1], upper + room))
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  axes.set_xlabel('step')
  axes.grid(color=theme.grid, linewidth=0.8)
  return to_png(figure)


def draw_map(
  points: np.ndarray,
  colors: Sequence[str],
  crosses: np.ndarray,
  explained: np.ndarray,
  theme: Theme,
) -> bytes:
  """Draws points in the plane, and crosses on top.

  Args:
    points: [N, 2] float.
    colors: the colour of each point.
    crosses: [M, 2] float.
    explained: [2] the share of the variance along each axis.
    theme: the colours.

  Returns:
    A PNG of 1,118 x 967 pixels.
  """
  figure, axes = new_axes(theme, width=5.2, height=4.5, dpi=215)
  axes.scatter(*points.T, c=list(colors), s=7, alpha=0.7, linewidths=0)
  axes.scatter(*crosses.T, c=theme.strong, s=18, marker='x', linewidths=1.0)
  axes.set_aspect('equal', adjustable='datalim')
  axes.set_xticks([])
  axes.set_yticks([])
  axes.set_xlabel(f'first axis, {explained[0]:.0%} of the variance')
  axes.set_ylabel(f'second axis, {explained[1]:.0%}')
  return to_png(figure)


def neighbor_sheet(
  queries: np.ndarray,
  neighbors: np.ndarray,
  right: np.ndarray,
  shown: np.ndarray,
) -> np.ndarray:
  """Lays out queries and their neighbours, framed green (right) or red.

  Args:
    queries: [Q, H, W, C] uint8, C = 1 or 3; one row of the sheet each.
    neighbors: [Q, K, H, W, C] uint8, nearest first, to the right of the query.
    right: [Q, K] bool.
    shown: [Q, K] bool; the place of another neighbour stays blank.

  Returns:
    [height, width, 3] uint8. Small images are enlarged by a whole factor to
    about 64 pixels, large ones shrunk to 96.
  """
  num_queries, k = right.shape
  tile_height, tile_width = _fit(queries[:1])[0].shape[:2]
  cell_height = tile_height + 2 * _FRAME + _GAP
  cell_width = tile_width + 2 * _FRAME + _GAP
  # A wider gap parts the query from its neighbours.
  first = cell_width + 2 * _GAP
  sheet = np.full(
    (num_queries * cell_height + _GAP, first + k * cell_width + _GAP, 3),
    255,
    np.uint8,
  )
  for i in range(num_queries):
    top = _GAP + i * cell_height
    tiles = _fit(np.concatenate([queries[i : i + 1], neighbors[i]]))
    frames = [OTHER, *(RIGHT if r else WRONG for r in right[i])]
    is_shown = [True, *shown[i]]
    for j, (tile, frame) in enumerate(zip(tiles, frames, strict=True)):
      if not is_shown[j]:
        continue
      left = _GAP + (first + (j - 1) * cell_width if j else 0)
      box = sheet[top : top + tile_height + 2 * _FRAME]
      box = box[:, left : left + tile_width + 2 * _FRAME]
      box[:] = tuple(bytes.fromhex(frame[1:]))
      box[_FRAME:-_FRAME, _FRAME:-_FRAME] = tile
  return sheet


def _fit(images: np.ndarray) -> list[np.ndarray]:
  """Returns images as RGB in the size of a sheet's tile."""
  height, width = images.shape[1:3]
  factor = max(1, 64 // max(height, width))
  scale = min(1.0, _THUMBNAIL_SIZE / max(height, width))
  shrunk = (max(1, round(width * scale)), max(1, round(height * scale)))
  tiles = []
  for image in images:
    picture = to_pillow(image).convert('RGB')
    if scale < 1:
      picture = picture.resize(shrunk)
    tiles.append(np.asarray(picture).repeat(factor, 0).repeat(factor, 1))
  return tiles


def to_pillow(image: np.ndarray) -> Image.Image:
  """Returns a Pillow image of [H, W, 1] or [H, W, 3] uint8."""
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
  """Returns means over `window` values on each side, fewer at the ends."""
  total = np.concatenate([[0.0], np.cumsum(values)])
  index = np.arange(len(values))
  start = np.maximum(index - window, 0)
  stop = np.minimum(index + window + 1, len(values))
  return (total[stop] - total[start]) / (stop - start)


def new_axes(
  theme: Theme, *, width: float, height: float, dpi: int
) -> tuple[Figure, Axes]:
  """Returns a figure and its axes in the colours of the theme."""
  figure = Figure(figsize=(width, height), dpi=dpi, layout='constrained')
  figure.set_facecolor(theme.background)
  axes = figure.add_subplot()
  axes.set_facecolor(theme.background)
  axes.set_axisbelow(True)
  axes.tick_params(colors=theme.text, length=0, labelsize=9)
  for label in (axes.xaxis.label, axes.yaxis.label):
    label.set(color=theme.text, fontsize=9)
  for side, spine in axes.spines.items():
    spine.set_color(theme.grid)
    spine.set_visible(side in ('left', 'bottom'))
  return figure, axes


def to_png(figure: Figure) -> bytes:
  """Returns the figure as a PNG with a palette, a third of the size."""
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')
  buffer = io.BytesIO()
  pixels.quantize(256, method=Image.Quantize.MEDIANCUT).save(
    buffer, 'PNG', optimize=True
  )
  return buffer.getvalue()
