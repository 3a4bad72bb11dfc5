"""TensorBoard reads what is written, and finds each thumbnail in its place."""

import io
import os
import tempfile

import numpy as np
import werkzeug.test
from absl.testing import parameterized
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins import base_plugin
from tensorboard.plugins import projector as tensorboard_projector
from tensorboard.plugins.projector import projector_plugin

from retrieval_jax.training import projector


def _read_config(workdir):
  config = tensorboard_projector.ProjectorConfig()
  with open(os.path.join(workdir, projector.CONFIG_FILE)) as file:
    text_format.Parse(file.read(), config)
  return config


class ProjectorTest(parameterized.TestCase):
  def write(self, workdir, name='test', num_rows=5, shape=(6, 4, 1)):
    rng = np.random.default_rng(num_rows)
    embeddings = rng.normal(size=(num_rows, 3))
    images = np.zeros((num_rows, *shape), np.uint8)
    images += (10 * np.arange(num_rows, dtype=np.uint8))[:, None, None, None]
    names = [f'class {i % 2}\n' for i in range(num_rows)]
    projector.write_projection(
      workdir, name, embeddings, names, lambda rows: images[rows]
    )
    return embeddings

  def test_rows_classes_and_thumbnails_belong_together(self):
    workdir = self.enter_context(tempfile.TemporaryDirectory())
    embeddings = self.write(workdir)
    (entry,) = _read_config(workdir).embeddings
    table = projector_plugin._read_tensor_tsv_file(
      os.path.join(workdir, entry.tensor_path)
    )
    np.testing.assert_allclose(table, embeddings, rtol=1e-4)
    with open(os.path.join(workdir, entry.metadata_path)) as file:
      self.assertEqual(
        file.read().splitlines(),
        ['class 0', 'class 1', 'class 0', 'class 1', 'class 0'],
      )
    width, height = entry.sprite.single_image_dim
    self.assertEqual((width, height), (4, 6))
    sheet = np.asarray(
      Image.open(os.path.join(workdir, entry.sprite.image_path))
    )
    self.assertEqual(sheet.shape, (2 * height, 3 * width, 3))
    for i in range(5):
      top, left = i // 3 * height, i % 3 * width
      np.testing.assert_array_equal(sheet[top, left], 10 * i)

  def test_the_server_of_tensorboard_gives_it_out(self):
    workdir = self.enter_context(tempfile.TemporaryDirectory())
    embeddings = self.write(workdir, 'digits/test')
    self.write(workdir, 'letters/test', num_rows=2)
    plugin = projector_plugin.ProjectorPlugin(
      base_plugin.TBContext(logdir=workdir, data_provider=None)
    )

    def get(route, **query):
      client = werkzeug.test.Client(plugin.get_plugin_apps()[route])
      response = client.get('/', query_string={'run': '.', **query})
      self.assertEqual(response.status_code, 200, response.data)
      return response

    self.assertEqual(get('/runs').json, ['.'])
    digits, letters = get('/info').json['embeddings']
    self.assertEqual(digits['tensorName'], 'digits/test')
    self.assertEqual(digits['tensorShape'], [5, 3])
    self.assertEqual(digits['sprite']['singleImageDim'], [4, 6])
    self.assertEqual(letters['tensorShape'], [2, 3])
    table = np.frombuffer(get('/tensor', name='digits/test').data, np.float32)
    np.testing.assert_allclose(table.reshape(5, 3), embeddings, rtol=1e-4)
    classes = get('/metadata', name='digits/test').text.splitlines()
    self.assertEqual(classes, [f'class {i % 2}' for i in range(5)])
    sprite = get('/sprite_image', name='digits/test')
    self.assertEqual(sprite.content_type, 'image/png')
    self.assertEqual(Image.open(io.BytesIO(sprite.data)).size, (12, 12))

  def test_large_images_are_shrunk_to_what_browsers_take(self):
    workdir = self.enter_context(tempfile.TemporaryDirectory())
    self.write(workdir, num_rows=2, shape=(200, 100, 3))
    (entry,) = _read_config(workdir).embeddings
    self.assertSequenceEqual(entry.sprite.single_image_dim, [32, 64])

  def test_sets_stand_beside_each_other_and_are_replaced(self):
    workdir = self.enter_context(tempfile.TemporaryDirectory())
    self.write(workdir, 'digits/test')
    self.write(workdir, 'letters/test')
    self.write(workdir, 'digits/test', num_rows=7)
    entries = _read_config(workdir).embeddings
    self.assertEqual(
      [entry.tensor_name for entry in entries], ['letters/test', 'digits/test']
    )
    with open(os.path.join(workdir, entries[1].metadata_path)) as file:
      self.assertLen(file.readlines(), 7)
    self.assertLen({entry.tensor_path for entry in entries}, 2)

  @parameterized.parameters((3, 5, 3), (50, 5, 5), (5, 0, 0))
  def test_rows_are_chosen_without_repetition(self, num_rows, shown, expected):
    rows = projector.choose_rows(num_rows, shown)
    self.assertLen(set(rows.tolist()), expected)
    self.assertTrue((np.diff(rows) > 0).all())
