"""Names of tensors by hand; that they fit is in `backbones/vit_test.py`."""

import numpy as np
from absl.testing import parameterized

from retrieval_jax.models.pretrained import names_vit


class FlaxPathTest(parameterized.TestCase):
  @parameterized.parameters(
    ('patch_embed.proj.weight', 'patch_embed/kernel'),
    ('reg_token', 'registers'),
    ('register_tokens', 'registers'),
    ('norm_pre.weight', 'pre_norm/scale'),
    ('blocks.11.attn.qkv.bias', 'block_11/attention/qkv/bias'),
    ('blocks.0.ls2.gamma', 'block_0/scale_2'),
    ('attn_pool.latent', 'pool/query'),
    ('attn_pool.mlp.fc2.weight', 'pool/mlp/fc_2/kernel'),
    ('embeddings.position_embeddings', 'positions'),
    ('dinov2.encoder.layer.3.norm2.bias', 'block_3/norm_2/bias'),
    (
      'encoder.layer.3.attention.output.dense.bias',
      'block_3/attention/out/bias',
    ),
    ('encoder.layer.3.layer_scale1.lambda1', 'block_3/scale_1'),
    ('vision_model.pre_layrnorm.bias', 'pre_norm/bias'),
    (
      'vision_model.encoder.layers.3.self_attn.out_proj.weight',
      'block_3/attention/out/kernel',
    ),
    ('encoder.layers.3.layer_norm1.weight', 'block_3/norm_1/scale'),
    ('vision_model.head.probe', 'pool/query'),
    ('vision_model.head.layernorm.weight', 'pool/norm/scale'),
  )
  def test_path(self, name, path):
    self.assertEqual(
      names_vit.flax_path(name), ('params', tuple(path.split('/')))
    )

  @parameterized.parameters(
    'head.weight',
    'mask_token',
    'embeddings.mask_token',
    'dinov2.embeddings.mask_token',
    'classifier.bias',
    'visual_projection.weight',
    'logit_scale',
    'vision_model.embeddings.position_ids',
    'text_model.encoder.layers.0.self_attn.q_proj.weight',
  )
  def test_unused(self, name):
    self.assertIsNone(names_vit.flax_path(name))

  @parameterized.parameters(
    'conv1.weight',
    'blocks.0.attn.q_norm.weight',
    'blocks.0.norm1.gamma',
    'fc_norm.weight',
    'encoder.layer.0.mlp.weights_in.weight',
    'head_dist.weight',
    'weight',
  )
  def test_unknown_has_no_leaf(self, name):
    self.assertEqual(
      names_vit.flax_path(name), ('params', tuple(name.split('.')))
    )


class PrepareTest(parameterized.TestCase):
  @parameterized.parameters(
    ('encoder.layer.0.attention.attention', ('query', 'key', 'value')),
    ('encoder.layer.0.attention', ('q_proj', 'k_proj', 'v_proj')),
    ('vision_model.encoder.layers.0.self_attn', ('q_proj', 'k_proj', 'v_proj')),
  )
  def test_queries_keys_and_values_are_joined_in_this_order(self, layer, words):
    # In a file they are sorted by name: keys come first.
    tensors = {
      f'{layer}.{word}.{leaf}': np.full((2, 2)[: 2 - (leaf == 'bias')], value)
      for word, value in sorted(zip(words, (1.0, 2.0, 3.0), strict=True))
      for leaf in ('weight', 'bias')
    }
    found = names_vit.prepare(tensors)
    self.assertEqual(set(found), {f'{layer}.qkv.weight', f'{layer}.qkv.bias'})
    np.testing.assert_array_equal(
      found[f'{layer}.qkv.bias'], [1, 1, 2, 2, 3, 3]
    )
    self.assertEqual(
      names_vit.flax_path(f'{layer}.qkv.weight'),
      ('params', ('block_0', 'attention', 'qkv', 'kernel')),
    )
    self.assertLen(tensors, 6)

  def test_what_is_not_complete_keeps_its_names(self):
    name = 'encoder.layers.0.self_attn.q_proj.weight'
    tensors = {name: np.zeros((2, 2))}
    self.assertEqual(list(names_vit.prepare(tensors)), [name])
    self.assertEqual(
      names_vit.flax_path(name), ('params', tuple(name.split('.')))
    )

  def test_the_other_tower_is_not_touched(self):
    names = [
      f'text_model.encoder.layers.0.self_attn.{word}_proj.weight'
      for word in 'qkv'
    ]
    tensors = {name: np.zeros((2, 2)) for name in names}
    self.assertEqual(list(names_vit.prepare(tensors)), names)

  def test_pooling_is_split(self):
    tensors = {
      'vision_model.head.attention.in_proj_weight': np.arange(12).reshape(6, 2),
      'vision_model.head.attention.in_proj_bias': np.arange(6),
    }
    found = names_vit.prepare(tensors)
    self.assertLen(found, 4)
    np.testing.assert_array_equal(
      found['vision_model.head.attention.q.bias'], [0, 1]
    )
    np.testing.assert_array_equal(
      found['vision_model.head.attention.kv.weight'],
      np.arange(4, 12).reshape(4, 2),
    )

  @parameterized.parameters((16, 17), (17, 17))
  def test_a_missing_position_of_the_class_token_is_zero(self, given, wanted):
    tensors = {
      'pos_embed': np.ones((1, given, 2)),
      'cls_token': np.ones((1, 1, 2)),
    }
    found = names_vit.prepare(tensors)['pos_embed']
    self.assertEqual(found.shape, (1, wanted, 2))
    self.assertEqual(found[0, 0, 0], given - 16)

  def test_positions_without_a_class_token_stay(self):
    tensors = {'pos_embed': np.ones((1, 16, 2))}
    self.assertIs(names_vit.prepare(tensors)['pos_embed'], tensors['pos_embed'])
