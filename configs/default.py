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
  # Of a run in stages: a tuple of dictionaries, each with what differs in it,
  # such as ({'num_epochs': 8, 'image_size': 224}, {'num_epochs': 2,
  # 'image_size': 384}); retrieval_jax.training.stages.KEYS may differ.
  config.stages = config_dict.placeholder(tuple)
  # None: once an epoch.
  config.eval_every_steps = config_dict.placeholder(int)
  config.checkpoint_every_steps = config_dict.placeholder(int)
  config.log_every_steps = 25

  config.data = data = ml_collections.ConfigDict()
  # One of retrieval_jax.data.DATASETS, 'tfds/<builder>', or 'mixture'.
  data.name = arg or 'mnist_5k'
  # Its folder; None: where its library puts it.
  data.dir = config_dict.placeholder(str)
  # Of 'table': the CSV or Parquet file, how it is encoded (None: UTF-8), what
  # separates several labels, and the column of fonts, vendors or cameras.
  data.file = config_dict.placeholder(str)
  data.encoding = config_dict.placeholder(str)
  data.label_separator = config_dict.placeholder(str)
  data.domain_column = config_dict.placeholder(str)
  # Of 'glyphs': a folder of fonts; None: those of matplotlib.
  data.fonts = config_dict.placeholder(str)
  # Of 'gldv2': 'clean', 'c2x', 'all' or 'none' of the training images, and
  # whether recognition is measured too, which embeds them all.
  data.subset = config_dict.placeholder(str)
  data.recognition = False
  # Of 'roxford5k' and 'rparis6k': the folder revisitop1m, to search in too.
  data.distractors = config_dict.placeholder(str)
  # Of TFDS: sub-splits such as 'train[:80%]', and where the defaults fail,
  # what is searched in and the names of the features.
  data.train_split = config_dict.placeholder(str)
  data.test_split = config_dict.placeholder(str)
  data.gallery = config_dict.placeholder(str)
  # Whether each image is cut to its box, where the data set has one.
  data.use_boxes = False
  data.image_feature = config_dict.placeholder(str)
  data.label_feature = config_dict.placeholder(str)
  # Of 'mixture': for each data set, by the name it is reported by, its `name`
  # and what else of this section differs for it.
  data.members = ml_collections.ConfigDict()
  # None: as the data come. Else 'class_disjoint' (zero-shot), 'stratified' or
  # 'leave_one_domain_out'.
  data.split = config_dict.placeholder(str)
  # Of the classes, or of the images of each class.
  data.test_fraction = 0.5
  data.test_domain = config_dict.placeholder(str)
  # Of the test images of a class that ask; None: all, each against the others.
  data.query_fraction = config_dict.placeholder(float)
  # What the epoch is selected on: one fold of the training 'classes', or of the
  # 'images' of each; None: nothing is selected, the last step counts.
  data.validation = config_dict.placeholder(str)
  data.validation_folds = 5
  data.validation_fold = 0
  data.split_seed = 0
  # Side of the square that the model sees; None: that of the images, if they
  # are alike. The shorter side is resized to resize_size (None: image_size),
  # and the centre cut out.
  data.image_size = config_dict.placeholder(int)
  data.resize_size = config_dict.placeholder(int)
  # 1 or 3; None: as the images have.
  data.channels = config_dict.placeholder(int)
  # Side of the square that the whole picture is sent to the device on when
  # augment.crop_scale draws crops there; None: half as much again.
  data.canvas_size = config_dict.placeholder(int)
  # That read and decode; 0: as many as there are cores.
  data.num_threads = 0
  # Of the images of a set; more of them unreadable end the run.
  data.max_unreadable_share = 0.01
  # Over all devices and hosts.
  data.batch_size = 32
  # 'uniform', 'class_weighted', 'category_balanced' or 'hierarchical'.
  data.sampler = 'uniform'
  # P of a P x K batch, K = batch_size / P; 0: images, not classes, are drawn.
  data.classes_per_batch = 0
  data.categories_per_batch = 0
  # Classes are drawn by their size to this power: 1 all images alike, 0.5 the
  # square root for long tails, 0 all classes alike.
  data.class_power = 1.0
  # Times that each image of a batch is augmented, each time anew: 2 or more for
  # losses that compare views.
  data.views_per_image = 1
  # Of a mixture: 'proportional', 'balanced' or 'round_robin'.
  data.mixing = 'proportional'
  # Of the pixels in [0, 1], one number or one a channel.
  data.mean = (0.1307,)
  data.std = (0.3081,)

  # What is done to the images of a training step, on the device; see
  # retrieval_jax/data/augmentation/options.py. Nothing, unless it is set.
  config.augment = augment = ml_collections.ConfigDict()
  # Share of the picture's area in a random resized crop, such as (0.2, 1.0).
  augment.crop_scale = config_dict.placeholder(tuple)
  augment.crop_ratio = (3 / 4, 4 / 3)
  # Probability of mirroring from left to right.
  augment.flip = 0.0
  # Largest angle, in degrees.
  augment.rotation = 0.0
  # Strengths, 0.4 being common; of the hue in turns, at most 0.5.
  augment.brightness = 0.0
  augment.contrast = 0.0
  augment.saturation = 0.0
  augment.hue = 0.0
  # Probability, and standard deviation in pixels.
  augment.blur = 0.0
  augment.blur_sigma = (0.1, 2.0)
  # Probability, and share of the area that is erased.
  augment.erase = 0.0
  augment.erase_scale = (0.02, 0.33)
  augment.erase_ratio = (0.3, 3.3)
  augment.erase_fill = 'mean'
  # Of Beta(alpha, alpha), for losses against proxies.
  augment.mixup = 0.0
  augment.cutmix = 0.0

  config.model = model = ml_collections.ConfigDict()
  model.name = 'convnet'
  model.embedding_dim = 50
  # What a backbone takes of these, docs/models.md says; None: as it has it.
  # Of the convolutions of 'convnet': 'none', or 'batch' for BatchNorm.
  model.normalization = config_dict.placeholder(str)
  # Whether BatchNorm keeps its statistics, and uses them in training too.
  model.frozen_batch_norm = config_dict.placeholder(bool)
  # Whether activations are computed again for the gradient, and not kept.
  model.remat = config_dict.placeholder(bool)
  # Share of the residual branches dropped in training, at the last block.
  model.stochastic_depth = config_dict.placeholder(float)
  # 1 doubles height and width of the last map.
  model.last_stage_stride = config_dict.placeholder(int)
  # One of retrieval_jax.models.POOLINGS; None: the one of the backbone,
  # 'flatten' for 'convnet', which takes images of one size.
  model.pooling = config_dict.placeholder(str)
  # The options of each, for when it is chosen.
  model.gem = ml_collections.ConfigDict({'p': 3.0, 'learn_p': True})
  model.regional_gem = ml_collections.ConfigDict(
    {'p': 3.0, 'learn_p': True, 'region_p': 2.5, 'region_size': 5}
  )
  model.rmac = ml_collections.ConfigDict({'levels': 3})
  model.attention = ml_collections.ConfigDict({'num_heads': 8, 'mlp_ratio': 4})
  model.dolg = ml_collections.ConfigDict(
    {
      'features': 1024,
      'branch_features': 512,
      'dilations': (6, 12, 18),
      'true_projection': True,
      'p': 3.0,
      'learn_p': True,
    }
  )
  # Share of the pooled features dropped in training.
  model.dropout = 0.0
  # One of retrieval_jax.models.NECKS.
  model.neck = 'dense'
  # What is computed in; parameters, embeddings and losses are float32.
  model.dtype = 'float32'
  # The workdir of a run to take the parameters of.
  model.init_from = config_dict.placeholder(str)
  # Weights of other programs for the backbone: a file (safetensors, or what
  # torch.save writes), owner/name of the Hugging Face hub, or an installed
  # package; and the checksum that they must have, if any.
  model.pretrained = config_dict.placeholder(str)
  model.pretrained_sha256 = config_dict.placeholder(str)

  # The name and hyperparameters of one of retrieval_jax.losses.LOSSES.
  config.loss = ml_collections.ConfigDict()
  # The name and hyperparameters of one of retrieval_jax.losses.MINERS.
  config.miner = ml_collections.ConfigDict(
    {'name': config_dict.placeholder(str)}
  )

  # Of a loss against class proxies (arcface, cosface).
  config.head = head = ml_collections.ConfigDict()
  # Whether each device holds the proxies of its share of the classes alone.
  head.sharded = False
  # Share of the classes that are no class of the batch, of a sharded head: 1
  # compares with all of them.
  head.sample_rate = 1.0
  # How the proxies start: 'normal', or 'class_mean', the mean embedding of so
  # many images of each class.
  head.init = 'normal'
  head.init_images = 10

  # Rows of past batches that pair losses compare with too; 0: none.
  config.memory = memory = ml_collections.ConfigDict()
  memory.size = 0
  memory.warmup_steps = 0

  # Images that are embedded at a time in a training step, over all devices,
  # for batches whose activations do not fit; None: all of them.
  config.gradient_cache = gradient_cache = ml_collections.ConfigDict()
  gradient_cache.chunk_size = config_dict.placeholder(int)

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
  optimizer.backbone_learning_rate_multiplier = 1.0
  # The learning rate of each layer of the backbone is that of the layer after
  # it times this.
  optimizer.layer_decay = 1.0
  # What stays as it is: regular expressions of whole paths, as the log has them
  # at the start, such as ('backbone/conv_0/.*', 'backbone/conv_1/.*').
  optimizer.frozen = ()
  # The backbone trains from this step on, with a warm-up of its own.
  optimizer.head_only_steps = 0
  # An update is made from the mean gradient of so many steps.
  optimizer.accumulate_steps = 1
  # Of the moving average of the weights, such as 0.9999, which then is what is
  # measured and used; None: no average.
  optimizer.ema_decay = config_dict.placeholder(float)

  config.eval = evaluation = ml_collections.ConfigDict()
  evaluation.metrics = (
    'precision_at_1',
    'r_precision',
    'mean_average_precision_at_r',
    'mean_average_precision',
    'mean_reciprocal_rank',
    'recall_at_10',
  )
  # What a query is not judged by: 'sequence', images of its own sequence;
  # 'domain', those of its class that its own camera took (data.domain_column).
  evaluation.ignore = ()
  # The relevance of an image of another class of the query's category, 1 being
  # that of its class; 0: such an image is not relevant.
  evaluation.same_category_grade = 0.0
  evaluation.batch_size = 256
  # The embeddings of these views of an image are averaged: also flipped, and at
  # each scale (the network has to take images of any size).
  evaluation.flip = False
  evaluation.scales = (1.0,)
  # How the scales become one: 'mean', of the embeddings, or 'max', of the
  # pooled features (Scale GeM).
  evaluation.scale_pooling = 'mean'
  # What the measured network pools by, in place of model.pooling; it has to
  # take the same parameters. And the power of its generalised mean.
  evaluation.pooling = config_dict.placeholder(str)
  evaluation.gem_p = config_dict.placeholder(float)
  # Whether the trained model ends with a whitening, by the eval.pca_whitening
  # below, fitted on the training images: what is measured at the end, loaded,
  # indexed and exported has it.
  evaluation.whiten = False
  # Of the gallery, that TensorBoard's projector shows; 0: none.
  evaluation.projector_images = 1000
  # Of the similarity blocks; results do not depend on it.
  evaluation.memory_budget_mb = 128
  # What is done to the embeddings of the test and the validation sets, and to
  # their rankings, in this order; docs/postprocessing.md says what each is.
  # The metrics above stay those of the embeddings as they are: what each of
  # these changes, alone and all together, is the ablation in results.json; what
  # flip and scales change is in it too, if they are set.
  evaluation.postprocessing = ()
  # Of the ranked lists that the ablation measures.
  evaluation.list_length = 100
  # The options of each, for when it is chosen.
  evaluation.average_query_expansion = ml_collections.ConfigDict({'k': 10})
  evaluation.alpha_query_expansion = ml_collections.ConfigDict(
    {'k': 50, 'alpha': 3.0}
  )
  evaluation.database_augmentation = ml_collections.ConfigDict(
    {'k': 10, 'alpha': 3.0}
  )
  evaluation.pca_whitening = ml_collections.ConfigDict(
    {'dim': config_dict.placeholder(int), 'power': 0.5}
  )
  evaluation.learned_whitening = ml_collections.ConfigDict(
    {'dim': config_dict.placeholder(int)}
  )
  evaluation.k_reciprocal = ml_collections.ConfigDict(
    {'k1': 20, 'k2': 6, 'lambda_value': 0.3}
  )
  evaluation.diffusion = ml_collections.ConfigDict(
    {
      'kd': 50,
      'kq': 10,
      'truncation': 1000,
      'alpha': 0.99,
      'gamma': 3.0,
      'num_iterations': 20,
    }
  )
  evaluation.superglobal = ml_collections.ConfigDict(
    {'top_m': 400, 'num_neighbors': 9, 'beta': 0.15}
  )
  evaluation.constant_threshold = ml_collections.ConfigDict({'threshold': 0.5})
  evaluation.adaptive_threshold = ml_collections.ConfigDict({'n_std': 10.0})
  evaluation.label_aware = ml_collections.ConfigDict({'k': 3, 'threshold': 0.6})

  return config
