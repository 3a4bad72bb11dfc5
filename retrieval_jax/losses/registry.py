"""The losses and miners there are.

To add one: write the function and its row in the package of its family, and a
row in the case table of `tests/losses/contracts_test.py`.
"""

from retrieval_jax.losses import (
  contrast,
  listwise,
  mining,
  pair,
  proxy,
  triplet,
)
from retrieval_jax.losses.rows import Loss, Miner

LOSSES: dict[str, Loss] = {
  **contrast.LOSSES,
  **listwise.LOSSES,
  **pair.LOSSES,
  **proxy.LOSSES,
  **triplet.LOSSES,
}

MINERS: dict[str, Miner] = dict(mining.MINERS)
