"""From a name and options to a data set that is ready to train on."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from retrieval_jax.core.errors import InputError, unknown_name
from retrieval_jax.data import embedded, glyphs, prepared
from retrieval_jax.data.collection import Collection
from retrieval_jax.data.dataset import Dataset
from retrieval_jax.data.formats import (
  folders,
  landmarks,
  layouts,
  revisited,
  tables,
  uned,
)
from retrieval_jax.data.forming import make_dataset
from retrieval_jax.data.mixing import mix_datasets
from retrieval_jax.data.preprocessing import Preprocessing
from retrieval_jax.data.roles import resolve_roles
from retrieval_jax.data.shaping import choose_preprocessing
from retrieval_jax.data.validation import check_dataset

# Name -> what reads it; its keyword arguments are keys of `data.*`.
DATASETS: dict[str, Callable[..., Collection]] = {
  'mnist_5k': embedded.mnist_5k,
  'glyphs': glyphs.glyphs,
  'folder': folders.folder,
  'table': tables.table,
  'cub': layouts.cub,
  'cars': layouts.cars,
  'sop': layouts.sop,
  'in_shop': layouts.in_shop,
  'gldv2': landmarks.gldv2,
  'roxford5k': functools.partial(revisited.revisited, 'roxford5k'),
  'rparis6k': functools.partial(revisited.revisited, 'rparis6k'),
  'uned': uned.uned,
  'mnist': functools.partial(prepared.load_prepared, 'mnist'),
  'fashion_mnist': functools.partial(prepared.load_prepared, 'fashion_mnist'),
}
TFDS_PREFIX = 'tfds/'
MIXTURE = 'mixture'


def _keywords(function: Callable) -> tuple[str, ...]:
  """Returns the names of a function's keyword-only arguments."""
  return tuple(
    name
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
  )


def find_loader(name: str) -> Callable[..., Collection]:
  """Returns what reads a data set.

  Args:
    name: one of `DATASETS`, or 'tfds/' and the name of a TFDS builder.

  Raises:
    InputError: for another name, with the nearest.
  """
  if name.startswith(TFDS_PREFIX):
    return functools.partial(
      prepared.load_prepared, name.removeprefix(TFDS_PREFIX)
    )
  if name not in DATASETS:
    known = [*DATASETS, f'{TFDS_PREFIX}<builder>', MIXTURE]
    raise unknown_name('data.name', name, known)
  return DATASETS[name]


def check_name(name: str) -> None:
  """Raises `InputError` unless a data set of this name may be had."""
  if name != MIXTURE:
    find_loader(name)


def load_collection(name: str, **options: Any) -> Collection:
  """Reads the rows of a data set, and resolves what each is for.

  Args:
    name: see `find_loader`.
    **options: of its loader and of `resolve_roles`; None and False are left
      out.

  Raises:
    InputError: for an option that the data set does not take or lacks, and
      for data that cannot be had or used.

  Example:
    >>> collection = load_collection('mnist_5k', split='class_disjoint')
    >>> len(collection), int((collection.split == 0).sum())
    (5000, 2500)
  """
  loader = find_loader(name)
  # A flag that is off is not asked for either.
  options = {
    k: v for k, v in options.items() if v is not None and v is not False
  }
  roles = {
    key: options.pop(key) for key in _keywords(resolve_roles) if key in options
  }
  taken = _keywords(loader)
  for key, value in options.items():
    if key not in taken:
      raise InputError(
        f'data.{key} is {value!r}, but data.name {name!r} does not take it; '
        f'it takes {", ".join(f"data.{k}" for k in taken) or "none"}: leave '
        f'data.{key} out, or correct data.name'
      )
  for key, parameter in inspect.signature(loader).parameters.items():
    if parameter.default is parameter.empty and key not in options:
      raise InputError(
        f'data.{key} is missing, which data.name {name!r} needs: set '
        f'--config.data.{key}'
      )
  return resolve_roles(loader(**options), **roles)


def collection_options(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns those options of `load_dataset` that `load_collection` takes."""
  later = {*_keywords(make_dataset), *_keywords(choose_preprocessing)}
  later = later - {*_keywords(resolve_roles)} | {'members'}
  return {key: value for key, value in options.items() if key not in later}


def load_dataset(
  name: str,
  *,
  members: Mapping[str, Mapping[str, Any]] | None = None,
  preprocessing: Preprocessing | None = None,
  for_training: bool = True,
  **options: Any,
) -> Dataset:
  """Loads a data set and checks it.

  Args:
    name: one of `DATASETS`, 'tfds/<builder>', or 'mixture'.
    members: of a mixture: for each data set, by the name it is reported by, its
      `name` and what of the options differs for it.
    preprocessing: how pictures become arrays; None: as the options say.
    for_training: False: the tests alone, and no training set.
    **options: the keys of `data.*` that say what is loaded: those of the
      loader, of `resolve_roles`, `choose_preprocessing` and `make_dataset`.

  Raises:
    InputError: for an unknown name, or data that cannot be had or used.

  Example:
    >>> dataset = load_dataset('mnist_5k')
    >>> len(dataset.train), len(dataset.tests['test'].query)
    (4000, 1000)
    >>> dataset.image_shape, dataset.num_classes
    ((28, 28, 1), 10)
  """
  if name == MIXTURE and not for_training:
    raise InputError(
      f'data.name is {MIXTURE!r}; allowed is one data set at a time to measure '
      'a run on: take its members one after the other'
    )
  if name == MIXTURE:
    dataset = mix_datasets(
      {
        key: load_dataset(**(options | dict(member)))
        for key, member in (members or {}).items()
      }
    )
  elif members:
    raise InputError(
      f'data.members is given with data.name {name!r}; allowed is it with '
      f'{MIXTURE!r} alone: set --config.data.name={MIXTURE}'
    )
  else:
    forming, shaping = (
      {
        key: options[key]
        for key in _keywords(function)
        if options.get(key) is not None
      }
      for function in (make_dataset, choose_preprocessing)
    )
    collection = load_collection(name, **collection_options(options))
    dataset = make_dataset(
      collection,
      preprocessing or choose_preprocessing(collection, **shaping),
      for_training,
      **forming,
    )
  check_dataset(dataset)
  return dataset


def option_names() -> tuple[str, ...]:
  """Returns every option that some data set takes, in order."""
  functions = [
    resolve_roles,
    choose_preprocessing,
    make_dataset,
    prepared.load_prepared,
    *DATASETS.values(),
  ]
  return tuple(dict.fromkeys(k for f in functions for k in _keywords(f)))
