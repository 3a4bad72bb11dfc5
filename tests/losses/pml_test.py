"""Values and gradients are those of pytorch-metric-learning, as recorded."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from retrieval_jax import losses

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
FAMILIES = (
  'contrast',
  'listwise',
  'margin_softmax',
  'pair',
  'proxies',
  'triplet',
)
RECORDED = {
  family: json.loads((GOLDEN / f'pml_{family}.json').read_text())
  for family in FAMILIES
}
CASES = {
  f'{family}_{name}': (RECORDED[family]['arrays'], row)
  for family in FAMILIES
  for name, row in RECORDED[family]['cases'].items()
}
# Each loss as it is by default, and with options with which all has a say.
FEW = {
  name
  for name, (_, row) in CASES.items()
  if not row['arguments'] or name.endswith('_soft')
}
FEW |= {'margin_softmax_sphereface_without_margin', 'triplet_semihard'}
# Losses that PML has.
PML_LOSSES = """
  angular arcface circle contrastive cosface dynamic_soft_margin fast_ap
  generalized_lifted_structure histogram instance intra_pair_variance
  large_margin_softmax lifted_structure manifold margin multi_similarity nca
  normalized_softmax n_pairs ntxent p2s_grad pnp proxy_anchor proxy_nca
  ranked_list signal_to_noise_ratio_contrastive smooth_ap soft_triple
  sphereface subcenter_arcface supcon threshold_consistent_margin
  triplet_margin tuplet_margin vicreg
""".split()


def inputs_of(arrays, row):
  """Returns what is differentiated, and the other arguments."""
  prefix = 'equal_' if row['batch'] == 'equal' else ''
  labels = np.array(arrays[f'{prefix}labels'])
  found = {'embeddings': arrays[f'{prefix}embeddings']}
  more = {'labels': labels} | row['arguments']
  if 'ref_embeddings' in row['gradients']:
    name = 'view_embeddings' if row['views'] else 'ref_embeddings'
    found['ref_embeddings'] = arrays[name]
    more['ref_labels'] = labels if row['views'] else arrays['ref_labels']
  if 'proxies' in row['gradients']:
    proxies = np.array(arrays['proxies'])[:, : row['centers']]
    found['proxies'] = proxies.reshape(-1, proxies.shape[-1])
    if losses.LOSSES[row['loss']].kind != 'proxy':
      # Proxies of no class, which the loss itself learns.
      found['params'] = {'proxies': np.float32(found.pop('proxies'))}
  found = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float32),
    found,
    is_leaf=lambda x: isinstance(x, list),
  )
  return found, more


def _named(cases):
  return parameterized.named_parameters((name, *CASES[name]) for name in cases)


class PmlTest(parameterized.TestCase):
  @_named(FEW)
  def test_value_and_gradient_are_those_of_pml(self, arrays, row):
    self.check(arrays, row)

  @_named(CASES.keys() - FEW)
  @pytest.mark.slow
  def test_other_options_give_those_of_pml_too(self, arrays, row):
    self.check(arrays, row)

  def check(self, arrays, row):
    inputs, more = inputs_of(arrays, row)

    def loss_fn(inputs):
      return losses.compute(row['loss'], **inputs, **more)

    value, gradient = jax.jit(jax.value_and_grad(loss_fn))(inputs)
    np.testing.assert_allclose(value, row['value'], rtol=1e-5, atol=1e-7)
    gradient |= gradient.pop('params', {})
    for name, leaf in gradient.items():
      expected = np.array(row['gradients'][name])
      largest = max(np.abs(expected).max(), 1e-6)
      np.testing.assert_allclose(
        leaf, expected, rtol=0, atol=1e-4 * largest, err_msg=name
      )

  def test_every_loss_of_pml_is_recorded_and_here(self):
    self.assertLen(PML_LOSSES, 35)
    self.assertContainsSubset(PML_LOSSES, losses.LOSSES)
    for cases in (FEW, CASES):
      self.assertContainsSubset(
        PML_LOSSES, {CASES[name][1]['loss'] for name in cases}
      )


if __name__ == '__main__':
  absltest.main()
