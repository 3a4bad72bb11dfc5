"""What a validator remembers of each picture: digests, a hash, its size.

One pass over the files, in threads, into arrays: 73 bytes an image whatever its
size, so that millions fit in memory.
"""

import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable

import cv2
import numpy as np

from retrieval_jax.data import decoding
from retrieval_jax.data.collection import Collection

# JPEG is decoded at a fraction of its size down to this many pixels of the
# shorter side, which is all that the hash looks at, and four times faster.
_DECODED_SIDE = 48
_CHUNK = 64
# A JPEG of one colour decodes to values a step or two apart.
_BLANK_RANGE = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprints:
  """What is remembered of n pictures, or of what their boxes cut out.

  Attributes:
    rows: [n] int64, the rows of the collection that were read, ascending.
    paths: [n] uint64, digests of what the rows are called.
    places: [n] uint64, digests of what they are called and of their boxes.
    contents: [n] S16, digests of the bytes of the files and of the boxes.
    pixels: [n] S16, digests of the pixels that were decoded, JPEG at a fraction
      of its size: pictures of one digest are likely, not certain, to be equal.
    hashes: [n] uint64, see `perceptual_hash`.
    sizes: [n, 2] int32, (height, width) of the upright picture; 0: unreadable.
    is_blank: [n] bool, pictures of one colour.
    errors: {i: why picture i of the n cannot be read}.
  """

  rows: np.ndarray
  paths: np.ndarray
  places: np.ndarray
  contents: np.ndarray
  pixels: np.ndarray
  hashes: np.ndarray
  sizes: np.ndarray
  is_blank: np.ndarray
  errors: dict[int, str]

  @property
  def is_readable(self) -> np.ndarray:
    """[n] bool."""
    return self.sizes[:, 0] > 0


def perceptual_hash(grey: np.ndarray) -> int:
  """Returns 64 bits that stay alike when a picture is saved anew or resized.

  The signs of the 63 lowest frequencies but the mean, of the cosine transform
  of 32 x 32 pixels, against their median (pHash).

  Args:
    grey: [h, w] uint8, h and w at least 1.

  Returns:
    An int in [0, 2^63).

  References:
    Zauner, "Implementation and Benchmarking of Perceptual Image Hash
    Functions", 2010, section 3.2.1.

  Example:
    >>> grey = np.add.outer(np.arange(64), 3 * np.arange(80)).astype(np.uint8)
    >>> larger = cv2.resize(grey, (120, 96), interpolation=cv2.INTER_LINEAR)
    >>> near = perceptual_hash(grey) ^ perceptual_hash(larger)
    >>> far = perceptual_hash(grey) ^ perceptual_hash(grey.T)
    >>> near.bit_count() <= 4, far.bit_count() > 8
    (True, True)
  """
  small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
  low = cv2.dct(small.astype(np.float32))[:8, :8].ravel()[1:]
  bits = np.packbits(low > np.median(low), bitorder='little')
  return int.from_bytes(bits.tobytes(), 'little')


def take_fingerprints(
  collection: Collection,
  rows: np.ndarray,
  *,
  num_threads: int = 0,
  progress: Callable[[int], None] | None = None,
) -> Fingerprints:
  """Reads each of some pictures once.

  Args:
    collection: images, and boxes if there are any.
    rows: [n] int64, ascending.
    num_threads: that read and decode; 0: as many as there are cores.
    progress: is told the number of pictures that were read since it was told
      last.
  """
  n = len(rows)
  found = Fingerprints(
    rows=rows,
    paths=np.zeros(n, np.uint64),
    places=np.zeros(n, np.uint64),
    contents=np.zeros(n, 'S16'),
    pixels=np.zeros(n, 'S16'),
    hashes=np.zeros(n, np.uint64),
    sizes=np.zeros((n, 2), np.int32),
    is_blank=np.zeros(n, bool),
    errors={},
  )

  def take(start: int) -> int:
    stop = min(start + _CHUNK, n)
    for i in range(start, stop):
      _take_one(collection, found, i)
    return stop - start

  for count in map_in_threads(take, range(0, n, _CHUNK), num_threads):
    if progress is not None:
      progress(count)
  return found


def thumbnails(
  collection: Collection,
  rows: np.ndarray,
  size: int,
  num_threads: int = 0,
) -> np.ndarray:
  """Returns pictures, or their boxes, squashed to a square.

  Args:
    collection: images, and boxes if there are any.
    rows: [n] int64; one that cannot be read is black.
    size: in pixels.
    num_threads: that read and decode; 0: as many as there are cores.

  Returns:
    [n, size, size, 3] uint8, RGB.
  """
  small = np.zeros((len(rows), size, size, 3), np.uint8)

  def take(start: int) -> None:
    for i in range(start, min(start + _CHUNK, len(rows))):
      try:
        picture = read_picture(collection, int(rows[i]), 3, 2 * size)
      except decoding.UnreadableImageError:
        continue  # `take_fingerprints` has told.
      small[i] = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)

  for _ in map_in_threads(take, range(0, len(rows), _CHUNK), num_threads):
    pass
  return small


def pixel_digest(collection: Collection, row: int) -> bytes:
  """Returns 16 bytes that are equal for equal pixels, of any file format.

  Raises:
    decoding.UnreadableImageError: if the picture cannot be decoded.
  """
  return _digest_array(read_picture(collection, row, 3, 0))


def read_picture(
  collection: Collection, row: int, channels: int, min_side: int
) -> np.ndarray:
  """Returns a picture, or what its box cuts out.

  Args:
    collection: images, and boxes if there are any.
    row: of the collection.
    channels: 1 for grey or 3 for RGB.
    min_side: a JPEG may be decoded at a fraction of its size, as long as the
      shorter side of what is returned has this many pixels; 0: never.

  Returns:
    [h, w, channels] uint8. A box that is empty or outside is passed over.

  Raises:
    decoding.UnreadableImageError: if the picture cannot be decoded.
  """
  content = collection.images.read(row)
  return _decode(content, _box_of(collection, row), channels, min_side)[0]


def map_in_threads(function: Callable, items: Iterable, num_threads: int):
  """Yields function(item) in order; an interrupt leaves no thread behind."""
  executor = concurrent.futures.ThreadPoolExecutor(
    num_threads or os.cpu_count() or 1
  )
  try:
    yield from executor.map(function, items)
  finally:
    executor.shutdown(cancel_futures=True)


def _take_one(collection: Collection, found: Fingerprints, i: int) -> None:
  """Fills place i of the arrays."""
  row = int(found.rows[i])
  box = _box_of(collection, row)
  cut = b'' if box is None else box.tobytes()
  name = collection.images.describe(row).encode('utf-8', 'surrogateescape')
  found.paths[i] = _digest_bytes(name, 8)
  found.places[i] = _digest_bytes(name + b'\0' + cut, 8)
  try:
    content = collection.images.read(row)
    picture, size = _decode(content, box, 3, _DECODED_SIDE)
  except decoding.UnreadableImageError as error:
    found.errors[i] = str(error)
    return
  if isinstance(content, np.ndarray):
    content = _digest_array(content)
  found.contents[i] = _digest_bytes(content + cut, 16)
  found.pixels[i] = _digest_array(picture)
  found.hashes[i] = perceptual_hash(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
  found.sizes[i] = size
  found.is_blank[i] = int(picture.max()) - int(picture.min()) <= _BLANK_RANGE


def _box_of(collection: Collection, row: int) -> np.ndarray | None:
  """Returns [4] float32; None for the whole picture or a box without area."""
  if collection.boxes is None:
    return None
  box = collection.boxes[row]
  x_1, y_1, x_2, y_2 = box.tolist()
  return box if x_2 > x_1 and y_2 > y_1 else None


def _decode(
  content: bytes | np.ndarray,
  box: np.ndarray | None,
  channels: int,
  min_side: int,
) -> tuple[np.ndarray, tuple[int, int]]:
  """Returns the pixels of a box, and (height, width) of the whole picture."""
  height, width = decoding.read_size(content)
  if box is None:
    return decoding.decode(content, channels, min_side), (height, width)
  x_1, y_1, x_2, y_2 = box.tolist()
  if min_side:
    share = min(x_2 - x_1, y_2 - y_1) / min(height, width)
    min_side = min(min(height, width), int(np.ceil(min_side / share)))
  picture = decoding.decode(content, channels, min_side)
  x_scale, y_scale = picture.shape[1] / width, picture.shape[0] / height
  left, top = max(0, round(x_1 * x_scale)), max(0, round(y_1 * y_scale))
  right, bottom = round(x_2 * x_scale), round(y_2 * y_scale)
  part = picture[top : max(bottom, top + 1), left : max(right, left + 1)]
  return (part if part.size else picture), (height, width)


def _digest_bytes(content: bytes, size: int) -> int | bytes:
  """Returns a digest, as an int if it has 8 bytes."""
  digest = hashlib.blake2b(content, digest_size=size).digest()
  return int.from_bytes(digest, 'little') if size == 8 else digest


def _digest_array(array: np.ndarray) -> bytes:
  """Returns 16 bytes that tell arrays of other values or shapes apart."""
  digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
  digest.update(np.ascontiguousarray(array))
  return digest.digest()
