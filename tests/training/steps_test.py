"""One step is the same step on one device and on many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax import losses, models
from retrieval_jax.core import arrays, class_shards
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import optim, sharding, step_inputs, steps, tasks
from retrieval_jax.training import state as state_lib

TEN = config_lib.Classes(10)
_LOSSES = ('circle', 'triplet', 'arcface', 'cosface')


def _batch(dataset, size=16):
  rows = np.arange(size)
  return {
    'images': dataset.train.images_at(rows),
    'labels': dataset.train.labels[rows],
  }


def _setup(config, dataset, axis_name):
  schedule = optim.make_schedule(config.optimizer, 10)
  sharded = config.head.sharded and axis_name is not None
  optimizer = optim.make_optimizer(
    config.optimizer,
    schedule,
    axis_name if sharded else None,
    models.BACKBONES[config.model.name].layers,
  )
  task = tasks.make_task(
    config, config_lib.Classes.of(dataset), (8, 8, 1), axis_name
  )
  state = state_lib.create_state(
    functools.partial(task.new_state, optimizer), 0
  )
  step = functools.partial(
    steps.train_step,
    task=task,
    optimizer=optimizer,
    schedule=schedule,
    axis_name=axis_name,
  )
  return state, step


def _one_and_four(config, dataset, num_steps=1):
  """Returns (state, scalars) after steps on one device and on four."""
  batch = _batch(dataset)
  one, step = _setup(config, dataset, None)
  step = jax.jit(step)
  four, p_step = _setup(config, dataset, state_lib.AXIS)
  objective = config_lib.objective(
    config, config_lib.Classes.of(dataset), state_lib.AXIS
  )
  classes = state_lib.class_sharding(objective)
  four = state_lib.replicate(four, classes)
  p_step = jax.pmap(p_step, axis_name=state_lib.AXIS)
  for _ in range(num_steps):
    one, scalars = step(one, batch)
    four, p_scalars = p_step(four, state_lib.shard(batch))
  for path, leaf in jax.tree.leaves_with_path(four):
    if classes is None or not sharding.is_class_sharded(path):
      leaf = np.asarray(leaf)
      for device in range(1, 4):
        np.testing.assert_array_equal(leaf[device], leaf[0])
  four = state_lib.unreplicate(four, classes)
  return (one, scalars), (four, p_scalars)


@pytest.mark.parametrize(
  'name, override',
  [
    # Ten classes on four devices: three on each, and two that are none.
    ('arcface', {'head__sharded': True, 'loss__sub_centers': 2}),
    # A loss of pairs beside a sharded head: its rows are of one device each.
    ('weighted_sum', {'head__sharded': True}),
    ('circle', {'model__normalization': 'batch', 'memory__size': 24}),
  ]
  # What a loss does on four devices is tested for all in contracts_test.py.
  + [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in (
      *((name, {}) for name in _LOSSES),
      ('cosface', {'head__sharded': True, 'augment__mixup': 0.4}),
      ('circle', {'gradient_cache__chunk_size': 4}),
      ('triplet', {'miner__name': 'triplet_margin'}),
    )
  ],
)
def test_four_devices_equal_one(make_config, tiny_dataset, name, override):
  # Plain SGD, since Adam's first step is the sign of the gradient, at a rate
  # that makes the new parameters as good as the gradient itself.
  config = make_config(
    name,
    optimizer__name='sgd',
    optimizer__learning_rate=1000.0,
    optimizer__warmup_steps=0,
    **override,
  )
  (one, scalars), (four, p_scalars) = _one_and_four(config, tiny_dataset)
  for leaf, p_leaf in zip(
    jax.tree.leaves(one), jax.tree.leaves(four), strict=True
  ):
    scale = max(1e-3, np.abs(leaf).max())
    np.testing.assert_allclose(p_leaf, leaf, atol=1e-5 * scale)
  for name, value in scalars.items():
    np.testing.assert_allclose(
      p_scalars[name][0], value, rtol=1e-4, atol=1e-6, err_msg=name
    )


@pytest.mark.parametrize(
  'name, override',
  [
    ('circle', {'augment__flip': 0.5, 'augment__rotation': 20.0}),
    ('arcface', {'augment__mixup': 0.4}),
    ('cosface', {'augment__cutmix': 1.0, 'augment__crop_scale': (0.2, 1.0)}),
  ],
)
def test_four_devices_see_the_pixels_of_one(
  make_config, tiny_dataset, name, override
):
  config = make_config(name, **override)
  batch = _batch(tiny_dataset)
  if 'augment__crop_scale' in override:
    loaded = tiny_dataset.train.load(np.arange(16), canvas=True)
    batch |= {
      'images': loaded.images,
      'aspect_ratios': loaded.aspect_ratios,
    }
  key = jax.random.key(3)

  def augmented(batch, axis_name):
    task = tasks.make_task(config, TEN, (8, 8, 1), axis_name)
    images, targets = step_inputs.augmented(batch, key, task, axis_name)
    return images, [x for x in targets if x is not None]

  one = jax.jit(lambda b: augmented(b, None))(batch)
  four = jax.pmap(
    lambda b: augmented(b, state_lib.AXIS), axis_name=state_lib.AXIS
  )(state_lib.shard(batch))
  for a, b in zip(*map(jax.tree.leaves, (one, four)), strict=True):
    b = np.asarray(b).reshape(a.shape)
    np.testing.assert_allclose(b, a, rtol=1e-6, atol=255e-6)
  assert np.abs(one[0] - batch['images'].astype(np.float32)).max() > 1


def test_mixed_labels_are_two_losses_by_weight(make_config):
  config = make_config('cosface', augment__mixup=1.0)
  task = tasks.make_task(config, TEN, (8, 8, 1), None)
  rng = np.random.default_rng(0)
  embeddings, proxies = rng.normal(size=(3, 4)), rng.normal(size=(10, 4))
  first, second = np.array([0, 1, 2]), np.array([3, 1, 4])
  weights = np.array([0.25, 0.5, 1.0])

  def loss(labels, second=None, weights=None):
    batch = losses.Batch(*map(jnp.asarray, (embeddings, labels)))
    if second is not None:
      batch = batch._replace(
        second_labels=jnp.asarray(second), first_weights=jnp.asarray(weights)
      )
    return task.objective({}, {}, batch, proxies=jnp.asarray(proxies)).loss

  def alone(labels, row):
    labels = np.where(np.arange(3) == row, labels, -1)
    return float(loss(labels))

  expected = np.mean(
    [
      w * alone(first, i) + (1 - w) * alone(second, i)
      for i, w in enumerate(weights)
    ]
  )
  np.testing.assert_allclose(loss(first, second, weights), expected, rtol=1e-5)


_PHASES = {
  'optimizer__accumulate_steps': 2,
  'optimizer__head_only_steps': 2,
  'optimizer__ema_decay': 0.9,
  'optimizer__layer_decay': 0.5,
  'optimizer__frozen': ('backbone/conv_0/.*',),
}


@pytest.mark.parametrize(
  'sharded, options',
  [
    pytest.param(False, {}, marks=pytest.mark.slow),
    pytest.param(True, {}, marks=pytest.mark.slow),
    (True, _PHASES),
  ],
)
def test_replicas_stay_bitwise_equal(
  make_config, tiny_dataset, sharded, options
):
  config = make_config(
    'arcface', head__sharded=sharded, optimizer__clip_norm=1, **options
  )
  _one_and_four(config, tiny_dataset, 5)  # It looks at each leaf.


def test_two_steps_accumulate_to_one_of_both_batches(make_config, tiny_dataset):
  sgd = {
    'optimizer__name': 'sgd',
    'optimizer__warmup_steps': 0,
    'optimizer__schedule': 'constant',
  }
  state, step = _setup(make_config('arcface', **sgd), tiny_dataset, None)
  batch = _batch(tiny_dataset, 16)
  large, _ = jax.jit(step)(state, batch)
  two = make_config('arcface', optimizer__accumulate_steps=2, **sgd)
  state, step = _setup(two, tiny_dataset, None)
  step, first = jax.jit(step), state.params
  for rows in (slice(0, 8), slice(8, 16)):
    jax.tree.map(np.testing.assert_array_equal, state.params, first)
    state, _ = step(state, {key: value[rows] for key, value in batch.items()})
  for one, both in zip(
    *map(jax.tree.leaves, (large.params, state.params)), strict=True
  ):
    np.testing.assert_allclose(both, one, rtol=1e-4, atol=1e-7)


def test_moving_averages_follow_the_weights(make_config, tiny_dataset):
  config = make_config(optimizer__ema_decay=0.2, model__normalization='batch')
  state, step = _setup(config, tiny_dataset, None)
  step, expected = jax.jit(step), None
  for update in range(4):
    now = {
      'params': state.params['embedder'],
      'batch_stats': state.batch_stats,
    }
    now = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), now)
    if expected is None:
      expected = now
    else:
      d = min(0.2, update / (9 + update))  # Of the update before.
      expected = jax.tree.map(
        lambda a, w, d=d: d * a + (1 - d) * w, expected, now
      )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      state.measured(),
      expected,
    )
    state, _ = step(state, _batch(tiny_dataset))


def test_what_does_not_train_is_not_differentiated(make_config, tiny_dataset):
  batch = _batch(tiny_dataset)

  def compiled(head_only=False, **options):
    state, step = _setup(make_config('arcface', **options), tiny_dataset, None)
    step = functools.partial(step, head_only=head_only)
    program = jax.jit(step).lower(state, batch).compile()
    return program.cost_analysis()['flops'], program(state, batch)[0]

  whole, _ = compiled()
  frozen, state = compiled(optimizer__frozen=('backbone/.*',))
  phase, later = compiled(head_only=True, optimizer__head_only_steps=1)
  assert frozen < 0.6 * whole
  assert phase < 0.6 * whole
  first, _ = _setup(make_config('arcface'), tiny_dataset, None)
  for after in (state, later):
    jax.tree.map(
      np.testing.assert_array_equal,
      after.params['embedder']['backbone'],
      first.params['embedder']['backbone'],
    )


@pytest.mark.parametrize('name', ['triplet', 'arcface'])
def test_the_gradient_cache_is_the_direct_gradient(
  make_config, tiny_dataset, name
):
  options = {
    'optimizer__name': 'sgd',
    'optimizer__learning_rate': 1000.0,
    'optimizer__warmup_steps': 0,
  }
  after = []
  for chunk_size in (None, 4):
    config = make_config(name, gradient_cache__chunk_size=chunk_size, **options)
    state, step = _setup(config, tiny_dataset, None)
    after.append(jax.jit(step)(state, _batch(tiny_dataset))[0].params)
  for direct, cached in zip(*map(jax.tree.leaves, after), strict=True):
    scale = np.abs(direct).max()
    np.testing.assert_allclose(cached, direct, atol=1e-5 * scale)


@pytest.mark.slow
def test_the_gradient_cache_needs_the_memory_of_a_chunk(
  make_config, tiny_dataset
):
  """Activations of 4,096 images in chunks of 256 fit where 256 images do."""

  def peak(batch_size, chunk_size):
    config = make_config(
      data__batch_size=batch_size, gradient_cache__chunk_size=chunk_size
    )
    state, step = _setup(config, tiny_dataset, None)
    batch = {
      'images': jax.ShapeDtypeStruct((batch_size, 8, 8, 1), np.uint8),
      'labels': jax.ShapeDtypeStruct((batch_size,), np.int32),
    }
    compiled = jax.jit(step).lower(state, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20

  whole, cached = peak(4096, None), peak(4096, 256)
  # What is left is of 4,096 rows: the loss, in its own chunks of 16 MiB, and
  # the images, the embeddings and their gradient, which stay all the time.
  dim = make_config().model.embedding_dim
  rows = 4096 * (8 * 8 + 2 * dim) * 4 / 2**20
  loss = 5 * 16
  chunk = peak(256, None)
  assert cached < chunk + loss + rows
  # Without chunks the network alone takes several times that.
  assert whole > 4 * chunk + loss + rows


def test_traces_and_compiles_once(make_config, tiny_dataset, caplog):
  state, step = _setup(make_config(), tiny_dataset, state_lib.AXIS)
  traces = []

  def counted(state, batch):
    traces.append(1)
    return step(state, batch)

  p_step = jax.pmap(counted, axis_name=state_lib.AXIS, donate_argnums=(0,))
  state = state_lib.replicate(state)
  with jax.log_compiles():
    for _ in range(3):
      batch = state_lib.shard(_batch(tiny_dataset))
      state, _ = p_step(state, batch)
  assert len(traces) == 1
  compiled = [m for m in caplog.messages if m.startswith('Compiling ')]
  assert len(compiled) == 1


@pytest.mark.parametrize('name', ['circle', 'arcface'])
def test_a_few_steps_lower_the_loss(make_config, tiny_dataset, name):
  config = make_config(name, optimizer__schedule='constant')
  state, step = _setup(config, tiny_dataset, None)
  step, batch = jax.jit(step), _batch(tiny_dataset)
  values = []
  for _ in range(25):
    state, scalars = step(state, batch)
    values.append(float(scalars['loss']))
  assert values[-1] < 0.7 * values[1]


def test_bfloat16_keeps_float32_parameters(make_config, tiny_dataset):
  state, step = _setup(
    make_config('arcface', model__dtype='bfloat16'), tiny_dataset, None
  )
  state, scalars = jax.jit(step)(state, _batch(tiny_dataset))
  assert np.isfinite(scalars['loss'])
  for leaf in jax.tree.leaves(state.params):
    assert leaf.dtype == jnp.float32


def test_embeddings_come_back_in_order(make_config, tiny_dataset):
  config = make_config()
  state, _ = _setup(config, tiny_dataset, None)
  variables = {
    'params': state.params['embedder'],
    'batch_stats': state.batch_stats,
  }
  images = _batch(tiny_dataset)['images']
  one = steps.embed_step(
    variables,
    images,
    task=tasks.make_task(config, TEN, (8, 8, 1), None),
    axis_name=None,
  )
  p_embed = jax.pmap(
    functools.partial(
      steps.embed_step, task=tasks.make_task(config, TEN, (8, 8, 1))
    ),
    axis_name=state_lib.AXIS,
  )
  four = p_embed(state_lib.replicate(variables), state_lib.shard(images))
  np.testing.assert_allclose(four[0], one, atol=1e-6)
  np.testing.assert_allclose(jnp.linalg.norm(one, axis=1), 1.0, rtol=1e-5)


def test_accuracy_counts_ties_and_nan_against():
  cosines = jnp.array([[0.5, 0.5, 0.1], [0.1, 0.9, 0.2], [jnp.nan] * 3])
  labels = jnp.array([0, 1, 2])
  np.testing.assert_allclose(
    class_shards.top_k_accuracy(cosines, labels, 1), 1 / 3
  )
  np.testing.assert_allclose(
    class_shards.top_k_accuracy(cosines, labels, 2), 2 / 3
  )


def test_margin_does_not_enter_the_accuracy(make_config, tiny_dataset):
  """Near the start a margin of 0.35 puts every own logit below the others."""
  config = make_config('cosface')
  state, step = _setup(config, tiny_dataset, None)
  step, batch = jax.jit(step), _batch(tiny_dataset)
  for _ in range(4):
    state, _ = step(state, batch)
  task = tasks.make_task(config, TEN, (8, 8, 1), None)
  embeddings = steps.embed_step(
    {'params': state.params['embedder'], 'batch_stats': {}},
    batch['images'],
    task=task,
    axis_name=None,
  )
  cosines = arrays.proxy_cosines(embeddings, state.params['head']['proxies'])
  nearest = np.argmax(cosines, axis=1) == batch['labels']
  own = np.eye(10, dtype=bool)[batch['labels']]
  with_margin = np.argmax(np.where(own, cosines - 0.35, cosines), axis=1)
  _, scalars = step(state, batch)
  np.testing.assert_allclose(scalars['top_1_accuracy'], nearest.mean())
  assert nearest.mean() > np.mean(with_margin == batch['labels'])
