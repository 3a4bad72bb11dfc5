"""How an image is seen when it is embedded, and what is made of its views."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from retrieval_jax.core import arrays


class Views(NamedTuple):
  """How an image is seen when it is embedded; the views are averaged.

  Attributes:
    flip: whether also from left to right.
    scales: of height and width; 1.0 is the image as it is.
    scale_pooling: 'mean', or 'max' to take the largest of the pooled features
      of all scales, each of unit length, before the neck.
    multiple: what the height and width of a scaled image are multiples of.
  """

  flip: bool = False
  scales: tuple[float, ...] = (1.0,)
  scale_pooling: str = 'mean'
  multiple: int = 1

  def compared(self) -> dict[str, 'Views']:
    """Returns what these are judged beside: one view, each kind, and these.

    Example:
      >>> list(Views().compared()), list(Views(flip=True).compared())
      (['one view'], ['one view', 'flip'])
      >>> list(Views(flip=True, scales=(0.5, 1.0)).compared())
      ['one view', 'flip', 'scales', 'flip + scales']
    """
    unscaled = self._replace(scales=(1.0,), scale_pooling='mean')
    found = {'one view': unscaled._replace(flip=False)}
    if self.flip:
      found['flip'] = unscaled
    if self.scales != unscaled.scales:
      found['scales'] = self._replace(flip=False)
      if self.flip:
        found['flip + scales'] = self
    return found


def embed(
  network: Callable[..., jax.Array], images: jax.Array, views: Views
) -> jax.Array:
  """Returns the embeddings of images, of all their views together.

  The normalised sum of those of the views, each of unit length. With
  `scale_pooling='max'`, the pooled features of the scales are maximised over
  before the neck, and the mirror image is one more view (Scale GeM of infinite
  power: Shao et al., ICCV 2023, section 3.2).

  Args:
    network: (images, method=...) -> [B, D], of `models.Embedder`.
    images: [B, H, W, C] float32.
    views: of each image.

  Returns:
    [B, D] float32, unit rows.
  """
  if views.scale_pooling == 'max':
    seen = [images, images[:, :, ::-1]] if views.flip else [images]
    found = [_max_over_scales(network, view, views) for view in seen]
  else:
    found = [network(view) for view in _views(images, views)]
  embeddings = sum(map(arrays.normalize, found))
  return arrays.normalize(embeddings) if len(found) > 1 else embeddings


def _max_over_scales(network, images, views):
  pooled = (
    arrays.normalize(network(view, method='pool'))
    for view in _views(images, views._replace(flip=False))
  )
  return network(functools.reduce(jnp.maximum, pooled), method='project')


def _views(images: jax.Array, views: Views) -> Iterator[jax.Array]:
  """Yields the images at each scale, and flipped."""
  batch, height, width, channels = images.shape
  for scale in views.scales:
    size = tuple(
      max(round(pixels * scale / views.multiple), 1) * views.multiple
      for pixels in (height, width)
    )
    view = images
    if size != (height, width):
      shape = (batch, *size, channels)
      view = jax.image.resize(images, shape, 'linear', antialias=True)
    yield view
    if views.flip:
      yield view[:, :, ::-1]
