"""Losses for embeddings: pure functions, and what a config says of them.

A loss is a row of `LOSSES`: its function sees a matrix of pairs and masks
('pair'), the embeddings of a whole batch ('batch'), or cosines with proxies
('proxy'), and returns terms, `{name: (values, counts)}`, which `reduce_terms`
divides over rows and devices. `Objective` puts together what a config says:
miners, distances, reducers, regularizers, memory, sums of losses. At a prompt,
`compute` does everything in one call.

Where the losses differ from pytorch-metric-learning (PML) 2.9, and why:

  * ArcFace on the class centre. PML differentiates arccos, whose slope is
    infinite at a cosine of 1, and returns NaN for the embeddings and the
    proxies. The angle has no gradient there; here the sine's part is zero and
    the rest, the softmax over the other classes, is kept.
  * SmoothAP takes classes in any order and of any size; PML 2.9 needs them
    sorted and of one size, as many as there are images of each, and returns
    another number without a warning where they are interleaved.
  * Nothing valid (no positives, no negatives, all padding) gives 0 with a zero
    gradient, and NaN embeddings give NaN, never a loss of 0.
  * `reducer='mean'` of a pair loss divides by the valid terms; PML's
    MeanReducer also divides by the rows that have no positive or no negative,
    where its default reducer is another.
  * Weights of rows: the loss is divided by their sum, so that a weight of 0
    equals leaving the row out; PML divides by the number of rows.
  * Triplets are counted, never listed: O(B G) memory where PML builds a cube.
  * Logits and losses are float32 whatever the dtype of the embeddings.
  * Where two embeddings coincide, the gradient of their distance is zero.
"""

from retrieval_jax.losses.compute import compute
from retrieval_jax.losses.objective import (
  Batch,
  Objective,
  Outcome,
  reduce_terms,
)
from retrieval_jax.losses.options import WEIGHTED_SUM, Part, parse
from retrieval_jax.losses.registry import LOSSES, MINERS
from retrieval_jax.losses.regularizers import REGULARIZERS
from retrieval_jax.losses.rows import Loss, Miner, Regularizer
from retrieval_jax.losses.terms import Reducer, Terms

__all__ = [
  'LOSSES',
  'MINERS',
  'REGULARIZERS',
  'WEIGHTED_SUM',
  'Batch',
  'Loss',
  'Miner',
  'Objective',
  'Outcome',
  'Part',
  'Reducer',
  'Regularizer',
  'Terms',
  'compute',
  'parse',
  'reduce_terms',
]
