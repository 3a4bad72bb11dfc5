"""What a user may say of a loss, and what a mistake gets."""

import math

import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax import losses
from retrieval_jax.core.distances import Distance
from retrieval_jax.core.errors import InputError
from retrieval_jax.losses.terms import Reducer


class MistakesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('circel', {}, "loss.name is 'circel'; did you mean 'circle'"),
    ('circle', {'scal': 1.0}, "loss.scal is .*did you mean 'scale'"),
    ('circle', {'margin': 'wide'}, "loss.margin is 'wide'; allowed is a num"),
    ('circle', {'margin': True}, 'loss.margin is True'),
    ('circle', {'margin': None}, 'loss.margin is None'),
    ('circle', {'margin': 0.0}, 'loss.margin is 0.0; allowed .* above 0'),
    ('circle', {'margin': -0.1}, 'loss.margin is -0.1'),
    ('circle', {'margin': 1.5}, 'loss.margin is 1.5; .* at most 1'),
    ('circle', {'margin': math.nan}, 'loss.margin is nan'),
    ('circle', {'scale': math.inf}, 'loss.scale is inf'),
    ('circle', {'scale': 0}, 'loss.scale is 0'),
    ('circle', {'weight': 0}, 'loss.weight is 0'),
    ('circle', {'reducer': 'avg'}, "loss.reducer is 'avg'.*nonzero_mean"),
    ('circle', {'reducer': ['mean']}, 'loss.reducer is .*allowed is a name'),
    ('circle', {'reducer': 'threshold'}, 'without low and high'),
    (
      'circle',
      {'reducer': {'name': 'threshold', 'lo': 1}},
      "loss.reducer.lo is not .*did you mean 'low'",
    ),
    ('circle', {'distance': 'lp'}, "loss.distance is 'lp'; .* one of cosine"),
    ('contrastive', {'distance': 'l2'}, "loss.distance is 'l2'"),
    (
      'contrastive',
      {'distance': {'name': 'lp', 'p': 0.5}},
      'loss.distance.p is 0.5; allowed is a number of at least 1',
    ),
    ('arcface', {'distance': 'lp'}, 'allowed is None for'),
    ('arcface', {'sub_centers': 0}, 'loss.sub_centers is 0; .*integer'),
    ('arcface', {'sub_centers': 1.5}, 'loss.sub_centers is 1.5'),
    ('circle', {'positives': 'view'}, 'loss.positives is .*class, image'),
    ('circle', {'class_weights': ()}, 'loss.class_weights is'),
    ('circle', {'class_weights': (1, -1)}, 'loss.class_weights is'),
    ('circle', {'class_weights': 'log'}, "or 'inverse_log', or None"),
    (
      'circle',
      {'embedding_regularizer': 'l2'},
      'loss.embedding_regularizer is .*known',
    ),
    ('circle', {'weight_regularizer': 'regular_face'}, 'which has no proxies'),
    ('arcface', {'margin': 0.5}, "loss.margin is .*did you mean 'margin_deg'"),
    ('arcface', {'margin_deg': 120}, 'loss.margin_deg is 120; .*degrees'),
    ('cosface', {'margin': 35}, 'loss.margin is 35'),
    ('circle', {'miner': 'triplet'}, "loss.miner.name is 'triplet'; did you"),
    (
      'triplet_margin',
      {'miner': {'name': 'triplet_margin', 'margin': -1.0}},
      'loss.miner.margin is -1.0',
    ),
    (
      'triplet_margin',
      {'miner': {'name': 'triplet_margin', 'type_of_triplets': 'semi'}},
      'loss.miner.type_of_triplets is .*all, easy, hard, semihard',
    ),
    ('arcface', {'miner': 'multi_similarity'}, 'which loss .* does not take'),
    ('weighted_sum', {}, 'loss.parts is None; allowed is a mapping'),
    ('weighted_sum', {'margin': 1}, 'set it on one of the parts'),
    (
      'weighted_sum',
      {'parts': {'a': {'name': 'circle', 'scal': 1}}},
      'loss.parts.a.scal is not',
    ),
    (
      'weighted_sum',
      {
        'parts': {
          'a': {'name': 'arcface'},
          'b': {'name': 'subcenter_arcface'},
        }
      },
      'parts share the proxies',
    ),
  )
  def test_each_gets_one_line(self, name, options, message):
    with self.assertRaisesRegex(InputError, message) as caught:
      losses.parse({'name': name, **options})
    self.assertNotIn('\n', str(caught.exception))

  def test_the_prefix_is_that_of_the_config(self):
    with self.assertRaisesRegex(InputError, 'mine.miner.margin is 0'):
      miner = {'name': 'triplet_margin', 'margin': 0}
      losses.parse({'name': 'triplet_margin', 'miner': miner}, 'mine')


class PartsTest(parameterized.TestCase):
  def test_what_is_not_said_is_that_of_the_loss(self):
    (part,) = losses.parse({'name': 'contrastive'})
    self.assertEqual(part.reducer, Reducer('nonzero_mean'))
    self.assertEqual(part.distance, Distance('lp'))
    self.assertEqual(part.weight, 1.0)
    self.assertIsNone(part.miner)
    (part,) = losses.parse({'name': 'soft_triple'})
    self.assertEqual(part.centers, 10)

  def test_names_and_mappings_say_the_same(self):
    (short,) = losses.parse(
      {'name': 'contrastive', 'reducer': 'sum', 'miner': 'pair_margin'}
    )
    (long,) = losses.parse(
      {
        'name': 'contrastive',
        'reducer': {'name': 'sum'},
        'miner': {'name': 'pair_margin'},
      }
    )
    self.assertEqual(short, long)

  def test_numbers_of_numpy_pass(self):
    (part,) = losses.parse({'name': 'circle', 'scale': np.float32(256)})
    self.assertEqual(part.hyper, {'scale': 256})

  def test_a_sum_has_the_options_of_each(self):
    one, two = losses.parse(
      {
        'name': 'weighted_sum',
        'parts': {
          'pairs': {'name': 'supcon', 'weight': 0.5, 'temperature': 0.2},
          'classes': {'name': 'arcface', 'sub_centers': 2},
        },
      }
    )
    self.assertEqual((one.label, one.weight), ('pairs', 0.5))
    self.assertEqual((two.name, two.centers), ('arcface', 2))


if __name__ == '__main__':
  absltest.main()
