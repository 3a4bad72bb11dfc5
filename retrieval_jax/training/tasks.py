"""What a config asks to be trained, as one value that both steps are given."""

from typing import NamedTuple

import jax
import ml_collections
import optax

from retrieval_jax import losses, models
from retrieval_jax.data import augmentation as augmentation_lib
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import state as state_lib
from retrieval_jax.training.config import Classes
from retrieval_jax.training.state import Networks, TrainState
from retrieval_jax.training.views import Views


class Task(NamedTuple):
  """What is trained, without its weights.

  Attributes:
    networks: the modules.
    objective: the loss.
    mean: of the pixels in [0, 1], one number or one a channel.
    std: likewise.
    seed: of what is random in a step.
    image_shape: (H, W, C) that the network sees.
    augmentation: what is done to the images of a training step.
    views: how an image is seen when it is embedded.
    chunk_size: rows that a device embeds at a time in a training step; None:
      all of them at once.
    frozen: regular expressions of the parameters that do not train.
    accumulate_steps: steps to an update.
    ema_decay: of the moving averages of the embedder; None: there are none.
    first_step: of the run, from which updates are counted.
  """

  networks: Networks
  objective: losses.Objective
  mean: tuple[float, ...]
  std: tuple[float, ...]
  seed: int
  image_shape: tuple[int, int, int]
  augmentation: augmentation_lib.Augmentation
  views: Views
  chunk_size: int | None = None
  frozen: tuple[str, ...] = ()
  accumulate_steps: int = 1
  ema_decay: float | None = None
  first_step: int = 0

  def new_state(
    self, optimizer: optax.GradientTransformation, seed: int
  ) -> TrainState:
    """Returns the state of step 0, a function of the seed."""
    return state_lib.new_state(
      seed,
      self.networks,
      self.objective,
      optimizer,
      self.image_shape,
      averages=self.ema_decay is not None,
    )


def make_task(
  config: ml_collections.ConfigDict,
  classes: Classes,
  image_shape: tuple[int, int, int],
  axis_name: str | None = state_lib.AXIS,
  first_step: int = 0,
) -> Task:
  """Returns the task of a validated config, for such classes and images."""
  chunk_size = config.gradient_cache.chunk_size
  devices = 1 if axis_name is None else jax.device_count()
  objective = config_lib.objective(config, classes, axis_name)
  return Task(
    networks=state_lib.build_networks(config, objective, axis_name),
    objective=objective,
    mean=tuple(config.data.mean),
    std=tuple(config.data.std),
    seed=config.seed,
    image_shape=tuple(image_shape),
    augmentation=config_lib.augmentation(config),
    views=Views(
      bool(config.eval.flip),
      tuple(config.eval.scales),
      config.eval.get('scale_pooling', 'mean'),
      models.BACKBONES[config.model.name].multiple,
    ),
    chunk_size=None if chunk_size is None else chunk_size // devices,
    frozen=tuple(config.optimizer.get('frozen', ())),
    accumulate_steps=config.optimizer.get('accumulate_steps', 1),
    ema_decay=config.optimizer.get('ema_decay'),
    first_step=first_step,
  )
