"""Which examples form the batch of a step: pure functions of (seed, step).

Nothing is remembered between steps, so the step is the whole state of a run:
the batch of step 70,000 is the same in a run that went there, in one resumed
there, and on every process.

To add a sampler: a function `Request -> Sampler`, and a line in `SAMPLERS`.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from retrieval_jax.core import errors, relations
from retrieval_jax.core.errors import InputError
from retrieval_jax.data.samplers.balanced import (
  BalancedSampler,
  CategoryBalancedSampler,
  CategoryClasses,
  ClassImages,
  DistinctImages,
  HierarchicalSampler,
)
from retrieval_jax.data.samplers.mixtures import (
  BalancedMixture,
  RoundRobinMixture,
  check_parts,
)
from retrieval_jax.data.samplers.permutations import Permutations, group_rows
from retrieval_jax.data.samplers.uniform import Sampler, UniformSampler
from retrieval_jax.data.samplers.weighted import (
  ClassWeightedSampler,
  power_weights,
)

MIXINGS = ('proportional', 'balanced', 'round_robin')


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
  """What a sampler is made from; see `make_sampler`."""

  labels: np.ndarray
  permutations: Permutations
  batch_size: int
  classes_per_batch: int = 0
  categories: np.ndarray | None = None
  categories_per_batch: int = 0
  class_power: float = 1.0
  class_weights: np.ndarray | None = None


def make_sampler(
  labels: np.ndarray,
  *,
  seed: int,
  batch_size: int,
  name: str = 'uniform',
  classes_per_batch: int = 0,
  categories: np.ndarray | None = None,
  categories_per_batch: int = 0,
  class_power: float = 1.0,
  class_weights: np.ndarray | None = None,
  parts: np.ndarray | None = None,
  mixing: str = 'proportional',
) -> Sampler:
  """Returns the sampler of a config.

  Args:
    labels: [N] int, of the training set; or [N, L] label sets: an image is then
      one of each of its classes.
    seed: in [0, 2 ** 64).
    batch_size: B, examples in a batch, over all devices and processes.
    name: how they are drawn.
      'uniform': every image as often as every other; with classes_per_batch,
        it is 'balanced'.
      'balanced': P classes x K images, every class as often as every other.
      'category_balanced': P classes x K images out of G categories a batch,
        every category as often as every other.
      'hierarchical': the same, every class as often as every other.
      'class_weighted': classes by weight, their images in turn.
    classes_per_batch: P; K = B / P.
    categories: [N] int, the category (super-class) of each image.
    categories_per_batch: G, a divisor of P.
    class_power: of 'class_weighted', in [0, 1]: a class of n images weighs
      n ** class_power; 1 draws all images alike, 0.5 is square-root sampling, 0
      draws all classes alike.
    class_weights: [C], a weight for each class that occurs, in the order of
      their labels, instead of class_power.
    parts: [M + 1] int, the rows at which M data sets begin, from 0 to N; None:
      one set.
    mixing: of the data sets.
      'proportional': their rows are one set.
      'balanced': each batch has B / M of each set (and P / M classes, and G / M
        categories).
      'round_robin': step s takes its batch from set s mod M.

  Raises:
    InputError: for a batch that cannot be formed.

  Example:
    >>> labels = np.array([7, 7, 7, 8, 8, 9, 9, 9])
    >>> sampler = make_sampler(labels, seed=0, batch_size=4)
    >>> np.sort(np.concatenate([sampler(0), sampler(1)])).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    >>> balanced = make_sampler(
    ...   labels, seed=0, batch_size=4, classes_per_batch=2)
    >>> np.unique(labels[balanced(5)], return_counts=True)[1].tolist()
    [2, 2]
    >>> mixture = make_sampler(
    ...   labels, seed=0, batch_size=4, parts=[0, 3, 8], mixing='balanced')
    >>> (mixture(5) < 3).tolist()
    [True, False, True, False]
  """
  labels = relations.check_labels(
    labels, 'labels of the training set', label_sets=True
  )
  _check_count('seed', seed, 0)
  _check_count('data.batch_size', batch_size, 1)
  _check_count('data.classes_per_batch', classes_per_batch, 0)
  _check_count('data.categories_per_batch', categories_per_batch, 0)
  if name == 'uniform' and classes_per_batch:
    name = 'balanced'
  if name not in SAMPLERS:
    raise errors.unknown_name('data.sampler', name, SAMPLERS)
  if mixing not in MIXINGS:
    raise errors.unknown_name('data.mixing', mixing, MIXINGS)
  if name in _BY_CATEGORY:
    if labels.ndim == 2:
      raise InputError(
        f'data.sampler is {name!r}, but the images have several labels each '
        '(data.label_separator), which may be of several categories; allowed '
        "are 'uniform', 'balanced' and 'class_weighted': set one of them"
      )
    categories = _check_categories(categories, name, len(labels))
  _check_settings(
    name, classes_per_batch, categories_per_batch, class_power, class_weights
  )
  if class_weights is not None:
    class_weights = _check_weights(class_weights, _num_classes(labels))
  request = Request(
    labels=labels,
    permutations=Permutations(seed),
    batch_size=batch_size,
    classes_per_batch=classes_per_batch,
    categories=categories,
    categories_per_batch=categories_per_batch,
    class_power=class_power,
    class_weights=class_weights,
  )
  parts = check_parts(parts, len(labels))
  if mixing == 'proportional' or len(parts) == 2:
    return SAMPLERS[name](request)
  return _mixture(request, name, seed, parts, mixing)


def _uniform(request: Request) -> UniformSampler:
  _check_batch_fits(request)
  return UniformSampler(
    len(request.labels), request.batch_size, request.permutations
  )


def _balanced(request: Request) -> BalancedSampler:
  images = _class_images(request)
  if request.classes_per_batch > images.num_classes:
    raise InputError(
      f'data.classes_per_batch is {request.classes_per_batch}; allowed is at '
      f'most {images.num_classes}, the number of classes of the training set'
    )
  sampler = BalancedSampler(images, request.classes_per_batch)
  if request.labels.ndim == 1:
    return sampler
  return DistinctImages(sampler, len(request.labels))


def _by_category(make: type) -> Callable[[Request], Sampler]:
  """Returns the builder of a sampler of categories."""

  def build(request: Request) -> Sampler:
    images = _class_images(request)
    classes, count = request.classes_per_batch, request.categories_per_batch
    if count < 1 or classes % count:
      raise InputError(
        f'data.categories_per_batch is {count}; allowed are divisors of '
        f'data.classes_per_batch {classes}: each category gives as many classes'
      )
    categories = CategoryClasses.of(request.labels, request.categories, images)
    sizes, share = categories.sizes, classes // count
    if count > len(sizes):
      raise InputError(
        f'data.categories_per_batch is {count}; allowed is at most '
        f'{len(sizes)}, the number of categories of the training set'
      )
    if share > sizes.min():
      raise InputError(
        f'data.classes_per_batch is {classes} of data.categories_per_batch '
        f'{count}, {share} classes of each category, but the smallest category '
        f'has {sizes.min()}; allowed is at most {sizes.min() * count} classes: '
        'set it lower, or leave out small categories'
      )
    return make(images, categories, classes, count)

  return build


def _class_weighted(request: Request) -> ClassWeightedSampler:
  _check_batch_fits(request)
  order, starts = group_rows(request.labels)
  weights = request.class_weights
  if weights is None:
    weights = power_weights(np.diff(starts), request.class_power)
  elif not weights.any():
    raise InputError(
      'class_weights has no weight above 0; allowed is at least one'
    )
  return ClassWeightedSampler(
    order, starts, weights, request.batch_size, request.permutations
  )


_BY_CATEGORY = ('category_balanced', 'hierarchical')

SAMPLERS: dict[str, Callable[[Request], Sampler]] = {
  'uniform': _uniform,
  'balanced': _balanced,
  'category_balanced': _by_category(CategoryBalancedSampler),
  'hierarchical': _by_category(HierarchicalSampler),
  'class_weighted': _class_weighted,
}


def _class_images(request: Request) -> ClassImages:
  return ClassImages.of(
    request.labels,
    request.permutations,
    batch_size=request.batch_size,
    classes_per_batch=request.classes_per_batch,
  )


def _mixture(
  request: Request, name: str, seed: int, parts: np.ndarray, mixing: str
) -> Sampler:
  """Gives each data set a sampler of its own."""
  count = len(parts) - 1
  shares = {
    'batch_size': request.batch_size,
    'classes_per_batch': request.classes_per_batch,
    'categories_per_batch': request.categories_per_batch,
  }
  if mixing == 'balanced':
    for key, value in shares.items():
      if value % count:
        raise InputError(
          f'data.{key} is {value}; allowed with data.mixing=balanced are '
          f'multiples of {count}, the number of data sets: set it to '
          f'{math.ceil(value / count) * count}, or data.mixing=round_robin'
        )
    shares = {key: value // count for key, value in shares.items()}
  samplers = []
  for member in range(count):
    rows = slice(*parts[member : member + 2].tolist())
    labels, weights = request.labels[rows], request.class_weights
    if weights is not None:
      known = np.unique(relations.incidences(request.labels)[1])
      weights = weights[np.isin(known, labels)]
    own = dataclasses.replace(
      request,
      labels=labels,
      # Member 0 is the one of a run without a mixture.
      permutations=Permutations(seed, member + 1),
      categories=(
        None if request.categories is None else request.categories[rows]
      ),
      class_weights=weights,
      **shares,
    )
    try:
      samplers.append(SAMPLERS[name](own))
    except InputError as error:
      share = (
        ', of which each set gets its share' if mixing == 'balanced' else ''
      )
      raise InputError(
        f'data set {member + 1} of the {count} of the mixture '
        f'(data.mixing={mixing}{share}): {error}'
      ) from error
  if mixing == 'round_robin':
    return RoundRobinMixture(tuple(samplers), parts[:-1])
  block = 1
  if shares['classes_per_batch']:
    block = shares['batch_size'] // shares['classes_per_batch']
  return BalancedMixture(tuple(samplers), parts[:-1], block)


def _check_settings(name, classes, categories, power, weights) -> None:
  """Raises if a sampler lacks a setting, or would leave one unheard."""
  takes_classes = name == 'balanced' or name in _BY_CATEGORY
  if takes_classes and not classes:
    raise InputError(
      f'data.sampler is {name!r} with data.classes_per_batch 0; allowed is at '
      'least 1: a batch is P classes x K images each'
    )
  if classes and not takes_classes:
    raise InputError(
      f'data.classes_per_batch is {classes}, but data.sampler {name!r} takes '
      "images, not classes; allowed is 0: set it, or data.sampler='balanced'"
    )
  if categories and name not in _BY_CATEGORY:
    raise InputError(
      f'data.categories_per_batch is {categories}, but data.sampler {name!r} '
      'knows no categories; allowed is 0: set it, or '
      f'data.sampler={_BY_CATEGORY[0]!r}'
    )
  is_number = isinstance(power, int | float) and not isinstance(power, bool)
  if not is_number or not 0 <= power <= 1:
    raise InputError(
      f'data.class_power is {power!r}; allowed is a number from 0 (all classes '
      'alike) to 1 (all images alike)'
    )
  if (power != 1 or weights is not None) and name != 'class_weighted':
    what = f'data.class_power is {power:g}'
    if weights is not None:
      what = 'class_weights are given'
    raise InputError(
      f'{what}, but data.sampler {name!r} weighs no classes; allowed is 1, and '
      "no weights: set them so, or data.sampler='class_weighted'"
    )


def _check_categories(categories, name, num_rows) -> np.ndarray:
  if categories is None:
    raise InputError(
      f'data.sampler is {name!r}, but the training set knows no categories; '
      'allowed are data with a category (super-class) of each image, or '
      "another sampler: set data.sampler='balanced'"
    )
  categories = relations.check_labels(categories, 'categories')
  if len(categories) != num_rows:
    raise InputError(
      f'categories has {len(categories)} rows; allowed are {num_rows}, as many '
      'as labels'
    )
  return categories


def _num_classes(labels: np.ndarray) -> int:
  return len(np.unique(relations.incidences(labels)[1]))


def _check_weights(weights, num_classes: int) -> np.ndarray:
  weights = np.asarray(weights, np.float64)
  if weights.shape != (num_classes,):
    raise InputError(
      f'class_weights has shape {weights.shape}; allowed is ({num_classes},), '
      'one for each class of the training set'
    )
  if not (np.isfinite(weights) & (weights >= 0)).all():
    raise InputError(
      'class_weights has a negative or non-finite weight; allowed are finite '
      'numbers of at least 0'
    )
  return weights


def _check_batch_fits(request: Request) -> None:
  if request.batch_size > len(request.labels):
    raise InputError(
      f'data.batch_size is {request.batch_size}; allowed is at most '
      f'{len(request.labels)}, the number of training images: set it lower'
    )


def _check_count(key: str, value: int, least: int) -> None:
  """Raises unless a value is an int of at least `least`."""
  is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
  if not is_int or value < least:
    raise InputError(
      f'{key} is {value!r}; allowed is an integer of at least {least}'
    )
