import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.errors import InputError
from retrieval_jax.data import transforms


def _random(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


class ToModelInputTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.0, 1.0), (0.1307, 0.3081), ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
  )
  def test_is_the_formula(self, mean, std):
    images = _random(2, 4, 5, 3)
    got = jax.jit(lambda x: transforms.to_model_input(x, mean, std))(images)
    expected = (images / 255.0 - np.array(mean)) / np.array(std)
    self.assertEqual(got.dtype, jnp.float32)
    np.testing.assert_allclose(got, expected, atol=2e-6)

  def test_refuses_floats(self):
    with self.assertRaisesRegex(InputError, 'dtype float32; allowed is uint8'):
      transforms.to_model_input(jnp.zeros((1, 2, 2, 1)), 0.5, 0.5)


if __name__ == '__main__':
  absltest.main()
