"""Losses that hold each pair by itself to a threshold."""

import jax
import jax.numpy as jnp

from retrieval_jax.losses.terms import Reducer, Terms, reduce_row


def contrastive(
  matrix: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  pos_margin: float = 0.0,
  neg_margin: float = 1.0,
  inverted: bool = False,
  reducer: str | Reducer = 'nonzero_mean',
) -> Terms:
  """Contrastive loss: positives nearer than one margin, negatives beyond one.

    L = mean_p max(0, d_p - pos_margin) + mean_n max(0, neg_margin - d_n)

  and of a similarity max(0, pos_margin - s_p), max(0, s_n - neg_margin). Each
  mean is over its own pairs. (The paper squares both parts; here, as in PML,
  they are not squared: `distance` 'lp' with `power` 2 squares the distance.)

  Use it as the simple baseline when a fixed distance should mean "the same",
  and with a memory of many negatives. At 'snr' it is the signal-to-noise ratio
  loss, `signal_to_noise_ratio_contrastive`. With a similarity set both margins:
  the defaults are of distances.

  Cost: O(B G) time and memory.

  Defaults: PML's, of this loss and of `signal_to_noise_ratio_contrastive`.

  Args:
    matrix: [B, G] distances (or similarities) of anchors and candidates, any
      float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    pos_margin: positives nearer than this cost nothing; in the unit of the
      matrix.
    neg_margin: negatives farther than this cost nothing.
    inverted: whether the matrix holds similarities.
    reducer: over the positive pairs, and over the negative ones.

  Returns:
    The terms 'positive' and 'negative', sums and numbers of the pairs of a row.

  Example:
    >>> d = jnp.array([[0.0, 0.5, 0.75, 1.5]])
    >>> positives = jnp.array([[False, True, False, False]])
    >>> negatives = jnp.array([[False, False, True, True]])
    >>> terms = contrastive(d, positives, negatives)
    >>> {name: float(values[0]) for name, (values, _) in terms.items()}
    {'positive': 0.5, 'negative': 0.25}

  References:
    Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping,
    CVPR 2006. Yuan et al., Signal-to-Noise Ratio, CVPR 2019 (at 'snr').
  """
  x = matrix.astype(jnp.float32)
  x = jnp.where(positives | negatives, x, 0.0)
  sign = -1.0 if inverted else 1.0
  return {
    'positive': reduce_row(
      jax.nn.relu(sign * (x - pos_margin)), positives, reducer
    ),
    'negative': reduce_row(
      jax.nn.relu(sign * (neg_margin - x)), negatives, reducer
    ),
  }


def threshold_consistent_margin(
  similarities: jax.Array,
  positives: jax.Array,
  negatives: jax.Array,
  *,
  lambda_plus: float = 1.0,
  lambda_minus: float = 1.0,
  margin_plus: float = 0.9,
  margin_minus: float = 0.5,
  reducer: str | Reducer = 'nonzero_mean',
) -> Terms:
  """Threshold-consistent margin: one cosine threshold for every class.

    L = lambda_plus  mean over s_p < margin_plus  of (margin_plus - s_p)
      + lambda_minus mean over s_n > margin_minus of (s_n - margin_minus)

  The means are over the hard pairs alone, so that easy ones do not dilute them.

  Use it beside another loss, as a second one with a weight, when one threshold
  on the cosine has to serve all classes (open-set verification, duplicates).

  Cost: O(B G) time and memory.

  Defaults: PML's.

  Args:
    similarities: [B, G] cosines of anchors and candidates, any float dtype.
    positives: [B, G] bool, the pairs of one class, without the row itself.
    negatives: [B, G] bool, the pairs of two classes.
    lambda_plus: weight of the positive part, at least 0.
    lambda_minus: weight of the negative part, at least 0.
    margin_plus: cosine that positives are pulled above.
    margin_minus: cosine that negatives are pushed below.
    reducer: over the positive pairs, and over the negative ones. PML's is
      without effect; its mean over the hard pairs is 'nonzero_mean'.

  Returns:
    The terms 'positive' and 'negative', sums and numbers of the hard pairs of a
    row.

  Example:
    >>> s = jnp.array([[1.0, 0.5, 0.75, 0.25]])
    >>> positives = jnp.array([[False, True, False, False]])
    >>> negatives = jnp.array([[False, False, True, True]])
    >>> terms = threshold_consistent_margin(s, positives, negatives)
    >>> {name: f'{values[0]:.2f}' for name, (values, _) in terms.items()}
    {'positive': '0.40', 'negative': '0.25'}

  References:
    Zhang et al., Threshold-Consistent Margin Loss, ICLR 2024.
  """
  s = jnp.where(positives | negatives, similarities.astype(jnp.float32), 0.0)
  pull, pulled = reduce_row(jax.nn.relu(margin_plus - s), positives, reducer)
  push, pushed = reduce_row(jax.nn.relu(s - margin_minus), negatives, reducer)
  return {
    'positive': (lambda_plus * pull, pulled),
    'negative': (lambda_minus * push, pushed),
  }
