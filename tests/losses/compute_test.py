"""The one call at a prompt, and what bad input gets there."""

import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import losses
from retrieval_jax.core.errors import InputError

X = np.random.RandomState(0).randn(6, 4).astype(np.float32)
Y = np.array([0, 0, 1, 1, 2, 2])
PROXIES = np.random.RandomState(1).randn(6, 4).astype(np.float32)


def compute(name, *arrays, **options):
  # Compiled whole: operation by operation takes five times as long.
  step = jax.jit(functools.partial(losses.compute, name, **options))
  return jax.device_get(step(*arrays))


class ComputeTest(parameterized.TestCase):
  @parameterized.parameters(
    ('circle', {'labels': Y[:, None]}, r'labels has shape \(6, 1\)'),
    ('circle', {'labels': Y.astype(float)}, 'labels has dtype float64'),
    ('circle', {'labels': Y[:4]}, 'one label a row'),
    ('circle', {'labels': Y + 2**40}, '32-bit'),
    ('circle', {'embeddings': X[0]}, r'embeddings has shape \(4,\)'),
    ('circle', {'embeddings': X.astype(int)}, 'dtype int32; allowed is a flo'),
    ('circle', {'proxies': PROXIES}, 'takes no proxies'),
    ('circle', {'ref_embeddings': X}, 'go together'),
    ('circle', {'ref_labels': Y}, 'go together'),
    ('arcface', {'miner': 'triplet_margin'}, 'does not take'),
    ('vicreg', {}, "'vicreg' compares two views"),
    ('dynamic_margin', {'proxies': PROXIES}, 'needs class_counts'),
    (
      'circle',
      {'ref_embeddings': X[:, :3], 'ref_labels': Y},
      'ref_embeddings has shape .*width of 4',
    ),
    (
      'triplet_margin',
      {'miner': {'margins': 0.1, 'name': 'hard'}},
      'miner.name is',
    ),
    ('arcface', {}, "'arcface' needs proxies"),
    ('arcface', {'proxies': PROXIES[:, :2]}, 'proxies has shape .*width of 4'),
    ('arcface', {'proxies': PROXIES[:2]}, 'labels has 2; .* at most 1'),
    ('arcface', {'proxies': PROXIES, 'sub_centers': 4}, 'sub_centers is 4'),
    (
      'arcface',
      {'proxies': PROXIES, 'ref_embeddings': X, 'ref_labels': Y},
      'not with ref_embeddings',
    ),
  )
  def test_a_mistake_gets_one_line(self, name, change, message):
    self.check_mistake(losses.compute, name, change, message)

  @parameterized.parameters(
    ('n_pairs', {'labels': np.tile(Y[:, None], 2)}, 'one class a row'),
    (
      'large_margin_softmax',
      {'proxies': PROXIES, 'sub_centers': 2},
      'loss.sub_centers is 2; allowed is 1',
    ),
  )
  def test_so_does_one_that_the_loss_itself_finds(self, name, change, message):
    self.check_mistake(compute, name, change, message)

  def check_mistake(self, compute, name, change, message):
    arguments = {'embeddings': X, 'labels': Y} | change
    with self.assertRaisesRegex(InputError, message) as caught:
      compute(name, arguments.pop('embeddings'), **arguments)
    self.assertNotIn('\n', str(caught.exception))

  def test_sub_centers_are_the_nearest_of_a_class(self):
    value = compute('arcface', X, Y, proxies=PROXIES, sub_centers=2)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    centers = PROXIES / np.linalg.norm(PROXIES, axis=1, keepdims=True)
    cosines = np.max((unit @ centers.T).reshape(6, 3, 2), axis=2)

    @jax.jit
    def arcface(cosines, labels):
      terms = losses.LOSSES['arcface'].function(cosines, labels)
      return losses.reduce_terms(terms)[0]

    expected = arcface(cosines, Y)
    np.testing.assert_allclose(value, expected, rtol=1e-5)

  def test_references_do_not_leave_out_equal_rows(self):
    # Without references a row is not its own positive; with them it may be.
    kwargs = {'labels': np.arange(6), 'scale': 4.0}
    self.assertEqual(compute('circle', X, **kwargs), 0)
    value = compute(
      'circle', X, ref_embeddings=X, ref_labels=np.arange(6), **kwargs
    )
    self.assertGreater(value, 0)

  def test_terms_are_divided_apart_and_added(self):
    terms = {
      'near': (np.float32([1, 3]), np.float32([1, 1])),
      'far': (np.float32([8, 0]), np.float32([4, 0])),
    }
    loss, parts = jax.device_get(jax.jit(losses.reduce_terms)(terms))
    self.assertEqual(loss, 4.0)
    self.assertEqual(parts, {'near': 2.0, 'far': 2.0})


if __name__ == '__main__':
  absltest.main()
