"""Images by row number: where they are kept, and how a model sees them.

`Images` is where pictures are kept: in memory (`ImageArray`), in files
(`ImageFiles`), in records of TFDS. A `Source` is some rows of one of them, with
labels, as arrays of one size. `Dataset` is what a run trains and measures on.
"""

import concurrent.futures
import dataclasses
import os
import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from retrieval_jax.core import files
from retrieval_jax.core.errors import InputError
from retrieval_jax.core.strings import Strings
from retrieval_jax.data import decoding
from retrieval_jax.data.preprocessing import Preprocessing

# Images that a thread takes at once: handing over costs tens of microseconds.
_CHUNK = 8


class Images(Protocol):
  """Pictures by row number, as they are kept. Threads may share one."""

  def __len__(self) -> int:
    """Returns how many there are."""

  def read(self, row: int) -> bytes | np.ndarray:
    """Returns the content of a picture.

    Returns:
      The bytes of an image file, or [h, w, C] uint8 if it is kept decoded.

    Raises:
      decoding.UnreadableImageError: if it cannot be had.
    """

  def describe(self, row: int) -> str:
    """Returns how messages call a picture: its path, or its number."""

  def identify(self, row: int) -> str:
    """Returns the same, wherever the data lie: without their folder."""


class ImageArray:
  """Decoded images of one size in memory."""

  def __init__(self, images: np.ndarray, name: str = 'image'):
    """Wraps [N, H, W, C] uint8."""
    self.images = images
    self._name = name

  def __len__(self) -> int:
    """Returns N."""
    return len(self.images)

  def read(self, row: int) -> np.ndarray:
    """Returns [H, W, C] uint8."""
    return self.images[row]

  def describe(self, row: int) -> str:
    """Returns 'image 17'."""
    return f'{self._name} {row}'

  def identify(self, row: int) -> str:
    """Returns 'image 17'."""
    return self.describe(row)


class ImageFiles:
  """Image files under one folder."""

  def __init__(self, root: str, paths: Strings):
    """Opens nothing yet.

    Args:
      root: of the paths.
      paths: relative to the root.
    """
    self.root = root
    self.paths = paths

  def __len__(self) -> int:
    """Returns the number of files."""
    return len(self.paths)

  def read(self, row: int) -> bytes:
    """Returns the bytes of a file."""
    try:
      return files.read_bytes(self.describe(row))
    except OSError as error:
      raise decoding.UnreadableImageError(
        error.strerror or repr(error)
      ) from error

  def describe(self, row: int) -> str:
    """Returns the path of a file."""
    return os.path.join(self.root, self.paths[row])

  def identify(self, row: int) -> str:
    """Returns the path below the root."""
    return self.paths[row]


class Loaded(NamedTuple):
  """Some images as arrays.

  Attributes:
    images: [n, H, W, C] uint8, black where one cannot be read.
    aspect_ratios: [n] float32, width / height of the upright picture (of its
      box), before it was resized; 1 where it cannot be read.
    errors: {i: why image i of the n cannot be read, with its path}.
  """

  images: np.ndarray
  aspect_ratios: np.ndarray
  errors: dict[int, str]


class _Threads:
  """A pool of threads, begun when it is first used.

  A copy in another process (pickled or forked) begins its own.
  """

  def __init__(self):
    """Begins nothing yet."""
    self._lock = threading.Lock()
    self._executor = None
    self._process = None

  def __reduce__(self):
    return _Threads, ()

  def map(
    self, function: Callable[[int], None], count: int, num_threads: int
  ) -> None:
    """Calls function(0), ..., function(count - 1), in any order."""
    num_threads = num_threads or _num_cores()
    size = max(1, min(_CHUNK, count // (2 * num_threads)))
    starts = range(0, count, size)
    if num_threads == 1 or len(starts) <= 1:
      for i in range(count):
        function(i)
      return

    def call(start):
      for i in range(start, min(start + size, count)):
        function(i)

    # Going through the results raises what a thread raised.
    for _ in self._begun(num_threads).map(call, starts):
      pass

  def _begun(self, num_threads):
    """Returns the executor of this process."""
    with self._lock:
      if self._process != os.getpid():
        self._process = os.getpid()
        self._executor = concurrent.futures.ThreadPoolExecutor(
          num_threads, 'decode'
        )
      return self._executor


def _num_cores() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """Some rows of a store of images, with labels, as a model sees them.

  Threads may share one.

  Attributes:
    store: where the pictures are.
    labels: [N] int32 class labels from 0; or [N, L] int32 label sets, padded
      with -1.
    preprocessing: how a picture becomes an array.
    rows: [N] int64, the rows of the store; None: all.
    boxes: [N, 4] float32, what is cut out of each; see `Collection.boxes`.
    num_threads: that read and decode; 0: as many as there are cores.
  """

  store: Images
  labels: np.ndarray
  preprocessing: Preprocessing
  rows: np.ndarray | None = None
  boxes: np.ndarray | None = None
  num_threads: int = 0
  _threads: _Threads = dataclasses.field(
    init=False, repr=False, default_factory=_Threads
  )

  @classmethod
  def of_array(cls, images: np.ndarray, labels: np.ndarray) -> 'Source':
    """Returns images in memory as a source that leaves them as they are.

    Args:
      images: [N, H, W] or [N, H, W, C] uint8, C of 1 or 3.
      labels: [N] int.

    Raises:
      InputError: for another dtype or shape, or labels of another number.

    Example:
      >>> source = Source.of_array(np.zeros((3, 8, 8), np.uint8), np.arange(3))
      >>> len(source), source.image_shape
      (3, (8, 8, 1))
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
      raise InputError(
        f'images have dtype {images.dtype} and shape {images.shape}; allowed '
        'are uint8 and (N, H, W) or (N, H, W, C)'
      )
    if labels.shape != images.shape[:1]:
      raise InputError(
        f'labels have shape {labels.shape}; allowed is {images.shape[:1]}, one '
        'for each image'
      )
    if images.ndim == 3:
      images = images[..., None]
    shape = images.shape[1:]
    preprocessing = Preprocessing(shape, min(shape[:2]), max(shape[:2]))
    return cls(ImageArray(images), labels, preprocessing)

  def __len__(self) -> int:
    """Returns N, the number of images."""
    return len(self.labels)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of the images that a model sees."""
    return self.preprocessing.image_shape

  @property
  def stored_rows(self) -> np.ndarray:
    """[N] int64, which rows of the store they are."""
    return np.arange(len(self)) if self.rows is None else self.rows

  def subset(self, rows: np.ndarray) -> 'Source':
    """Returns some rows of the N as a source."""
    return dataclasses.replace(
      self,
      labels=self.labels[rows],
      rows=self._stored(rows),
      boxes=None if self.boxes is None else self.boxes[rows],
    )

  def describe(self, row: int) -> str:
    """Returns how messages call image `row` of the N."""
    return self.store.describe(int(self._stored(row)))

  def identify(self, row: int) -> str:
    """Returns what tells image `row` from others, wherever the data lie.

    Example:
      >>> source = Source.of_array(np.zeros((3, 8, 8), np.uint8), np.arange(3))
      >>> source.identify(2)
      'image 2'
    """
    name = self.store.identify(int(self._stored(row)))
    if self.boxes is None or np.isnan(self.boxes[row]).any():
      return name
    # Several queries may be cut out of one picture.
    return f'{name} [{", ".join(f"{edge:g}" for edge in self.boxes[row])}]'

  def images_at(self, rows: np.ndarray) -> np.ndarray:
    """Returns the images of some rows, [n, H, W, C] uint8.

    One that cannot be read is black; `load` says which, and why.
    """
    return self.load(rows).images

  def load(self, rows: np.ndarray, *, canvas: bool = False) -> Loaded:
    """Reads and prepares some images, in threads.

    Args:
      rows: [n] int, of the N.
      canvas: whether to return the whole picture on a square of
        `preprocessing.canvas_size`, to be cropped on the device, and not what
        is evaluated.

    Returns:
      The images, which the caller may write into.

    Example:
      >>> source = Source.of_array(np.zeros((3, 8, 8), np.uint8), np.arange(3))
      >>> loaded = source.load(np.array([2, 0]))
      >>> loaded.images.shape, loaded.aspect_ratios.tolist(), loaded.errors
      ((2, 8, 8, 1), [1.0, 1.0], {})
    """
    rows = np.asarray(rows)
    stored = self._stored(rows)
    if isinstance(self.store, ImageArray) and self.boxes is None:
      shape = self.store.images.shape[1:]
      if self.preprocessing.is_identity(shape, canvas=canvas):
        ratio = shape[1] / shape[0]
        return Loaded(
          self.store.images[stored], np.full(len(rows), ratio, np.float32), {}
        )
    shape = self.preprocessing.image_shape
    if canvas:
      shape = (*[self.preprocessing.canvas_size] * 2, shape[2])
    images = np.zeros((len(rows), *shape), np.uint8)
    ratios = np.ones(len(rows), np.float32)
    errors = {}

    def prepare(i: int) -> None:
      row = int(stored[i])
      box = None if self.boxes is None else self.boxes[rows[i]]
      try:
        content = self.store.read(row)
        images[i], ratios[i] = self.preprocessing.prepare(
          content, box, canvas=canvas
        )
      except decoding.UnreadableImageError as error:
        errors[i] = f'{self.store.describe(row)}: {error}'

    self._threads.map(prepare, len(rows), self.num_threads)
    return Loaded(images, ratios, dict(sorted(errors.items())))

  def _stored(self, rows):
    """Returns the rows of the store."""
    return rows if self.rows is None else self.rows[rows]
