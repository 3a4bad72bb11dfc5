"""Every mistake in a config, found in the first second and said in one line.

`validate` finds what can be found without the data, `dataset_checks` the rest.
They raise `InputError` with the key, the value, what is allowed and the cure.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from retrieval_jax import data, losses, metrics, models
from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import optim, stages
from retrieval_jax.training.config_rules import RULES

# Sections with keys of their own besides those of RULES.
_OPEN_SECTIONS = (
  'loss',
  'miner',
  'model',
  'augment',
  'data.members',
  'stages',
)


def validate(config: ml_collections.ConfigDict, num_devices: int = 1) -> None:
  """Raises `InputError` for the first mistake that needs no data to be seen.

  Args:
    config: the whole config.
    num_devices: over all processes; it has to divide both batch sizes.
  """
  flat = config_lib.flatten(config)
  for key in RULES:
    if key not in flat:
      raise InputError(
        f'{key} is missing from the config; allowed is '
        f'{RULES[key].allowed}: add it, as configs/default.py has it'
      )
  for key, value in flat.items():
    if key not in RULES and not config_lib.is_in(key, _OPEN_SECTIONS):
      raise unknown_name('config key', key, RULES)
    if key in RULES and not RULES[key].holds(value):
      raise InputError(
        f'{key} is {value!r}; allowed is {RULES[key].allowed}: '
        f'set --config.{key}'
      )
  for index, stage in enumerate(stages.configs(config)):
    with stages.in_words_of(config, index):
      _validate_stage(stage, num_devices)


def _validate_stage(config: ml_collections.ConfigDict, num_devices: int):
  """Checks a config without stages, or as it is in one, of known keys."""
  data.check_name(config.data.name)
  models.check_model(
    config.model.name,
    {
      'embedding_dim': config.model.embedding_dim,
      **config_lib.model_options(config),
    },
  )
  _validate_weights(config.model)
  _validate_measured_model(config)
  _validate_whitening(config)
  parts = losses.parse(config_lib.loss_options(config))
  _validate_parts(config, parts, num_devices)
  optim.check_names(config.optimizer.name, config.optimizer.schedule)
  _validate_phases(config)
  metrics.check_metrics(config.eval.metrics)
  config_lib.postprocessing(config)
  _validate_batch(config, parts, num_devices)
  _validate_augmentation(config, parts, num_devices)
  # Stand-ins for the classes, which are not known without the data.
  trace_loss(config, config_lib.Classes(2, np.ones(2, np.int64)))


def _validate_weights(model: ml_collections.ConfigDict) -> None:
  """Checks that there is one place that the weights come from."""
  if model.pretrained is not None and model.init_from is not None:
    raise InputError(
      f'model.pretrained is {model.pretrained!r} and model.init_from is '
      f'{model.init_from!r}; allowed is one of them: set the other to None'
    )
  if model.pretrained is None and model.pretrained_sha256 is not None:
    raise InputError(
      'model.pretrained_sha256 is set without model.pretrained; allowed is '
      'None: name the weights too'
    )


def _validate_measured_model(config: ml_collections.ConfigDict):
  """Checks how the evaluation changes what the network pools."""
  asked = config.eval
  changed = config_lib.measured_model_options(config)
  if asked.pooling is not None and asked.pooling not in models.POOLINGS:
    raise unknown_name('eval.pooling', asked.pooling, models.POOLINGS)
  pooling = models.pooling_name(config.model.name, changed)
  if asked.gem_p is not None:
    allowed = models.POOLINGS[pooling].options.get('p')
    if allowed is None:
      raise InputError(
        f'eval.gem_p is {asked.gem_p}; allowed is None with the pooling '
        f'{pooling!r}, which takes no power: leave it out'
      )
    if allowed.complaint(asked.gem_p) is not None:
      raise InputError(
        f'eval.gem_p is {asked.gem_p}; allowed is {allowed.allowed()}'
      )
  try:
    models.check_model(config.model.name, changed)
  except InputError as error:  # It speaks of what is measured as `model`.
    raise InputError(f'eval.pooling is {asked.pooling!r}: {error}') from None
  if asked.scale_pooling == 'max' and len(asked.scales) == 1:
    raise InputError(
      "eval.scale_pooling is 'max' with one scale; allowed is 'mean', or "
      'several eval.scales, such as (0.7071, 1.0, 1.4142)'
    )


def _validate_whitening(config: ml_collections.ConfigDict):
  """Checks the whitening that the model ends with."""
  if not config.eval.whiten:
    return
  dim, most = config.eval.pca_whitening.dim, config.model.embedding_dim
  if dim is not None and dim > most:
    raise InputError(
      f'eval.pca_whitening.dim is {dim}; allowed is at most {most}, '
      'model.embedding_dim: set --config.eval.pca_whitening.dim'
    )
  if 'pca_whitening' in config.eval.postprocessing:
    raise InputError(
      "eval.postprocessing has 'pca_whitening' with eval.whiten, by which the "
      'embeddings are whitened already; allowed is one of them: leave it out'
    )


def _validate_phases(config: ml_collections.ConfigDict):
  """Checks the steps that are counted in updates."""
  every, delay = (
    config.optimizer.accumulate_steps,
    config.optimizer.head_only_steps,
  )
  if delay % every:
    raise InputError(
      f'optimizer.head_only_steps is {delay}; allowed is a multiple of '
      f'optimizer.accumulate_steps, {every}: set '
      f'--config.optimizer.head_only_steps={delay - delay % every}'
    )
  steps = config.num_train_steps
  if steps is not None and steps < every:
    raise InputError(
      f'optimizer.accumulate_steps is {every}; allowed is at most '
      f'num_train_steps, {steps}, or nothing is learnt'
    )


def trace_loss(
  config: ml_collections.ConfigDict, classes: config_lib.Classes
) -> None:
  """Has the loss look at the shapes of a batch, so that it says what is wrong.

  What a loss itself refuses, such as hyperparameters that contradict each
  other, stands in its function; nothing is computed or compiled.
  """
  objective = config_lib.objective(config, classes)
  labels = (2 * objective.num_views,)
  if classes.labels_per_row:
    labels += (classes.labels_per_row,)
  embeddings = jax.ShapeDtypeStruct(
    (labels[0], objective.embedding_dim), jnp.float32
  )
  proxies = jax.ShapeDtypeStruct(
    (classes.number * objective.centers, objective.embedding_dim), jnp.float32
  )

  def loss(embeddings, labels, proxies):
    params = objective.init_params(jax.random.key(0))
    batch = losses.Batch(embeddings, labels)
    return objective(params, objective.init_state(), batch, proxies=proxies)

  jax.eval_shape(
    loss, embeddings, jax.ShapeDtypeStruct(labels, jnp.int32), proxies
  )


def _validate_parts(
  config: ml_collections.ConfigDict,
  parts: Sequence[losses.Part],
  num_devices: int,
):
  """Checks what the losses need of the other sections."""
  views = config.data.views_per_image
  kinds = {part.row.kind for part in parts}
  for part in parts:
    if part.row.views > views:
      raise InputError(
        f'data.views_per_image is {views}; allowed are at least '
        f'{part.row.views} for loss {part.name!r}, which compares views of an '
        f'image: set --config.data.views_per_image={part.row.views}'
      )
    if part.positives == 'image' and views < 2:
      raise InputError(
        f'data.views_per_image is {views}; allowed are at least 2 where loss '
        f"{part.name!r} has positives='image': set "
        '--config.data.views_per_image=2'
      )
    if (
      config.head.sharded
      and part.row.kind == 'proxy'
      and not part.row.shardable
    ):
      able = [name for name, row in losses.LOSSES.items() if row.shardable]
      raise InputError(
        f'head.sharded is True, which loss {part.name!r} does not take; '
        f'losses that do: {", ".join(sorted(able))}'
      )
    if config.head.sharded and part.weight_regularizer is not None:
      raise InputError(
        f'head.sharded is True, and loss {part.name!r} has a '
        f'weight_regularizer, {part.weight_regularizer.name!r}, which compares '
        'all proxies; allowed is None: leave one of them out'
      )
  if config.head.init == 'class_mean' and 'proxy' not in kinds:
    raise InputError(
      "head.init is 'class_mean'; allowed is 'normal' without a loss against "
      'proxies: set --config.head.init=normal'
    )
  if config.head.sharded and 'proxy' not in kinds:
    raise InputError(
      'head.sharded is True; allowed is False without a loss against proxies: '
      'set --config.head.sharded=False'
    )
  if config.head.sample_rate < 1 and not config.head.sharded:
    raise InputError(
      f'head.sample_rate is {config.head.sample_rate}; allowed is 1.0 unless '
      'head.sharded is True: set --config.head.sharded=True'
    )
  if config.memory.size:
    _validate_memory(config.memory.size, parts)
  _validate_gradient_cache(config, num_devices)


def _validate_memory(size: int, parts: Sequence[losses.Part]):
  if all(part.row.kind == 'proxy' for part in parts):
    raise InputError(
      f'memory.size is {size}; allowed is 0 for losses against proxies, which '
      'compare no images: set --config.memory.size=0'
    )
  for part in parts:
    if part.row.kind != 'proxy' and not part.row.masked:
      raise InputError(
        f'memory.size is {size}; allowed is 0 for loss {part.name!r}, which '
        'takes the rows of one batch: set --config.memory.size=0'
      )


def _validate_gradient_cache(
  config: ml_collections.ConfigDict, num_devices: int
):
  chunk, batch = config.gradient_cache.chunk_size, config.data.batch_size
  if chunk is None:
    return
  if batch % chunk or chunk % num_devices:
    raise InputError(
      f'gradient_cache.chunk_size is {chunk}; allowed is a divisor of '
      f'data.batch_size {batch} and a multiple of the {num_devices} devices'
    )
  found = models.batch_norms(
    config.model.name, config_lib.model_options(config)
  )
  if found:
    raise InputError(
      f'gradient_cache.chunk_size is {chunk} with the BatchNorm of {found[0]}, '
      'whose statistics of a chunk are not those of the batch, so that the '
      'gradient would be another; allowed is None: leave it out'
    )


def _validate_augmentation(
  config: ml_collections.ConfigDict,
  parts: Sequence[losses.Part],
  num_devices: int,
):
  if not config_lib.augmentation(config).mixes_labels:
    return
  for part in parts:
    if part.row.kind != 'proxy':
      raise InputError(
        'augment.mixup and augment.cutmix give an image two labels, which the '
        f'pair loss {part.name!r} does not take; allowed are losses '
        'against proxies, such as arcface: set both to 0'
      )
  if config.data.batch_size // num_devices % 2:
    raise InputError(
      f'data.batch_size is {config.data.batch_size} on {num_devices} devices; '
      'allowed is an even number on each with augment.mixup or augment.cutmix, '
      'which mix neighbours'
    )


def _validate_batch(
  config: ml_collections.ConfigDict,
  parts: Sequence[losses.Part],
  num_devices: int,
):
  for key in ('data.batch_size', 'eval.batch_size'):
    size = config_lib.flatten(config)[key]
    if size % num_devices:
      raise InputError(
        f'{key} is {size}; allowed is a multiple of the {num_devices} devices: '
        f'set --config.{key}={-(-size // num_devices) * num_devices}'
      )
  # That P divides the batch, and that there are P classes, the sampler checks.
  batch, classes = config.data.batch_size, config.data.classes_per_batch
  pairs = [
    part.name
    for part in parts
    if part.row.kind != 'proxy' and part.positives == 'class'
  ]
  if pairs and batch == classes and config.data.views_per_image == 1:
    raise InputError(
      f'data.classes_per_batch is {classes} with data.batch_size {batch}, one '
      f'image a class; allowed are at least 2 for the pair loss '
      f'{pairs[0]!r}: set --config.data.classes_per_batch='
      f'{max(1, batch // 4)}'
    )
