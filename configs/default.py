"""What every config starts from: 10 epochs on the embedded digits.

A variant imports this file and overrides what it changes; each key can also be
set from the command line, as in `--config.data.batch_size=64`.
"""

import ml_collections
from ml_collections import config_dict


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the default config.

  Args:
    arg: the data set; `configs/circle.py:mnist` trains on full MNIST.
  """
  config = ml_collections.ConfigDict()

  # Batches, augmentation and initial weights are functions of the seed.
  config.seed = 0
  config.num_epochs = 10
  # If set, it wins over num_epochs.
  config.num_train_steps = config_dict.placeholder(int)
  # None: once an epoch.
  config.eval_every_steps = config_dict.placeholder(int)
  config.checkpoint_every_steps = config_dict.placeholder(int)
  config.log_every_steps = 25

  config.data = data = ml_collections.ConfigDict()
  data.name = arg or 'mnist_5k'
  # Where the data set lies prepared; None: where its library puts it.
  data.dir = config_dict.placeholder(str)
  # Over all devices and hosts.
  data.batch_size = 32
  # P of a P x K batch, K = batch_size / P; 0: uniform sampling.
  data.classes_per_batch = 0
  # Of the pixels in [0, 1], one number or one a channel.
  data.mean = (0.1307,)
  data.std = (0.3081,)

  config.model = model = ml_collections.ConfigDict()
  model.name = 'convnet'
  model.embedding_dim = 50
  # Of the convolutions: 'none', or 'batch' for BatchNorm.
  model.normalization = 'none'
  # Share of the features dropped in training.
  model.dropout = 0.0
  # What is computed in; parameters, embeddings and losses are float32.
  model.dtype = 'float32'
  # The workdir of a run to take the parameters of.
  model.init_from = config_dict.placeholder(str)

  # The name and hyperparameters of one of retrieval_jax.losses.LOSSES.
  config.loss = ml_collections.ConfigDict()
  # The name and hyperparameters of one of retrieval_jax.losses.MINERS.
  config.miner = ml_collections.ConfigDict(
    {'name': config_dict.placeholder(str)}
  )

  # Of a loss against class proxies (arcface, cosface).
  config.head = head = ml_collections.ConfigDict()
  head.sub_centers = 1

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.name = 'adamw'
  optimizer.learning_rate = 1e-3
  optimizer.warmup_steps = 100
  # 'cosine' to zero at the last step, or 'constant', after the warm-up.
  optimizer.schedule = 'cosine'
  # Decoupled, on matrices and kernels; biases and scales have none.
  optimizer.weight_decay = 1e-4
  # Of the global norm of the gradient; None: no clipping.
  optimizer.clip_norm = config_dict.placeholder(float)
  optimizer.head_learning_rate_multiplier = 1.0

  config.eval = evaluation = ml_collections.ConfigDict()
  evaluation.metrics = (
    'precision_at_1',
    'r_precision',
    'mean_average_precision_at_r',
    'mean_average_precision',
    'mean_reciprocal_rank',
    'recall_at_10',
  )
  evaluation.batch_size = 256
  # Of the similarity blocks; results do not depend on it.
  evaluation.memory_budget_mb = 128

  return config
