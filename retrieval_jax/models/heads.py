"""Heads: what training adds to an embedder, and owns the proxies."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.core import arrays


class ProxyHead(nn.Module):
  """Cosines of embeddings with learnt proxies of the classes.

  c_bj = max_k <e_b, w_jk> / (||e_b|| ||w_jk||)

  The cosines carry no margin: a proxy loss puts it on, and predictions and
  accuracies are read from them as they are.

  The proxies start normally distributed, so that their directions are uniform
  on the sphere (as in PML and insightface). Their length does not change the
  cosines, only how fast an optimizer turns them; PML's standard deviation is 1,
  insightface's 0.01.

  A class-sharded head (`head.sharded`) has these parameters too, and the same
  ones at the start. In training each device holds the proxies of its classes
  alone (`training.sharding`) and compares with these, or with a sample of them
  (`core.class_shards`).

  Attributes:
    num_classes: C.
    embedding_dim: D.
    sub_centers: K proxies for each class, adjacent in `proxies`.
    init_stddev: standard deviation of the initial entries.

  Example:
    >>> head = ProxyHead(num_classes=3, embedding_dim=4, sub_centers=2)
    >>> embeddings = jnp.eye(2, 4)
    >>> variables = head.init(jax.random.key(0), embeddings)
    >>> variables['params']['proxies'].shape
    (6, 4)
    >>> head.apply(variables, embeddings).shape
    (2, 3)

  References:
    Deng et al., ArcFace, CVPR 2019, eq. 2 (one centre);
    Deng et al., Sub-center ArcFace, ECCV 2020, eq. 2.
  """

  num_classes: int
  embedding_dim: int
  sub_centers: int = 1
  init_stddev: float = 1.0

  @nn.compact
  def __call__(self, embeddings: jax.Array) -> jax.Array:
    """Returns [B, C] float32 cosines of [B, D] embeddings."""
    proxies = self.param(
      'proxies',
      nn.initializers.normal(self.init_stddev),
      (self.num_classes * self.sub_centers, self.embedding_dim),
      jnp.float32,
    )
    return arrays.proxy_cosines(embeddings, proxies, self.sub_centers)
