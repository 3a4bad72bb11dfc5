"""States are made from a seed, go to the devices and back unchanged."""

import jax
import numpy as np

from retrieval_jax.training import state as state_lib
from retrieval_jax.training.experiment import make_experiment


def test_only_the_backbone_is_not_drawn(make_config):
  config = make_config(
    'arcface', model__normalization='batch', optimizer__ema_decay=0.9
  )
  (stage,) = make_experiment(config).stages
  flat = jax.tree_util.tree_leaves_with_path
  found = dict(flat(stage.initial_state(backbone=False)))
  wanted = dict(flat(stage.initial_state()))
  assert found.keys() == wanted.keys()
  in_backbone = {
    path: 'backbone' in jax.tree_util.keystr(path) for path in found
  }
  # Parameters, their two moments and averages, statistics and theirs.
  assert sum(in_backbone.values()) > 6
  for path, leaf in found.items():
    assert leaf.dtype == wanted[path].dtype
    np.testing.assert_array_equal(
      leaf, np.zeros_like(leaf) if in_backbone[path] else wanted[path]
    )


def test_replicate_and_back():
  tree = {'w': np.arange(6.0, dtype=np.float32).reshape(2, 3), 'n': np.int32(3)}
  replicated = state_lib.replicate(tree)
  assert replicated['w'].shape == (4, 2, 3)
  assert replicated['n'].shape == (4,)
  back = state_lib.unreplicate(replicated)
  for one, other in zip(
    jax.tree.leaves(tree), jax.tree.leaves(back), strict=True
  ):
    np.testing.assert_array_equal(one, other)
    assert np.asarray(one).dtype == other.dtype


def test_shard_keeps_the_order_of_rows():
  rows = np.arange(8)
  np.testing.assert_array_equal(state_lib.shard(rows), rows.reshape(4, 2))


def test_merge_params_takes_only_what_fits():
  new = {
    'embedder': {'w': np.zeros(2), 'v': np.zeros(1)},
    'head': {'p': np.zeros(3)},
  }
  old = {'embedder': {'w': np.ones(2)}, 'head': {'p': np.ones(5)}}
  merged, taken, fresh = state_lib.merge_params(new, old)
  assert taken == ['embedder/w']
  assert fresh == ['embedder/v', 'head/p']
  np.testing.assert_array_equal(merged['embedder']['w'], 1)
  np.testing.assert_array_equal(merged['head']['p'], np.zeros(3))
