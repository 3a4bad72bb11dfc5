"""What a backbone hands to the pooling."""

from typing import NamedTuple

import jax


class Features(NamedTuple):
  """The features of a batch of images.

  Attributes:
    maps: the last feature maps, in the order of the network, each [B, h, w, F]
      with its own h, w and F. Convolutional backbones give two, C4 of stride 16
      and C5 of stride 32; a transformer gives its patch tokens on their grid.
    token: [B, F], the class token of a transformer; None elsewhere.
  """

  maps: tuple[jax.Array, ...]
  token: jax.Array | None = None
