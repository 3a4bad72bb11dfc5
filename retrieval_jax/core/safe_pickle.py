"""Reads pickles of plain data without running anything that is in them.

A pickle is a program: it may import and call whatever it names. Here it gets
stand-ins for the few names that dictionaries, lists, strings, numbers and numpy
arrays of numbers need, made anew for each file, and is refused for any other.
A format that has more (tensors of torch) brings the stand-ins for them.
"""

import abc
import contextlib
import io
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np

from retrieval_jax.core.errors import InputError

_DTYPE = re.compile(r'[<>=|]?([iuf][1248])')


def read(path: str) -> Any:
  """Returns the data in a pickle.

  Args:
    path: of the file; of any protocol, also of Python 2.

  Returns:
    Dictionaries, lists, tuples, sets, strings, bytes, numbers and numpy arrays
    of numbers.

  Raises:
    InputError: for a file that cannot be read, is no pickle or a damaged one,
      or asks for any other thing.
  """
  with reading(path, 'pickle'), open(path, 'rb') as file:
    return plain(Unpickler(io.BytesIO(file.read()), path).load())


@contextlib.contextmanager
def reading(path: str, kind: str) -> Iterator[None]:
  """Turns whatever a damaged file leads to into the user's line.

  Args:
    path: of the file.
    kind: what it should be.

  Raises:
    InputError: the block has raised that, or anything else.
  """
  try:
    yield
  except InputError:
    raise
  except OSError as error:
    raise InputError(
      f'{os.fspath(path)!r} cannot be read: {error.strerror or error}; allowed '
      f'is a {kind}: correct the path'
    ) from error
  except Exception as error:  # A damaged file raises whatever it leads to.
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise InputError(
      f'{os.fspath(path)!r} is no {kind}, or a damaged one ({reason}); allowed '
      'is the file as its authors publish it: download it again'
    ) from error


def refuse_state(self, state):
  """Raises: a `__setstate__` for what a pickle must not change."""
  raise ValueError('it changes what it must not')


class StandIn:
  """Something to call, without attributes that a pickle could write."""

  __slots__ = ('_function',)
  __setstate__ = refuse_state

  def __init__(self, function: Callable[..., Any]):
    """Takes what is called."""
    self._function = function

  def __call__(self, *args):
    """Calls it."""
    return self._function(*args)


class Placeholder(abc.ABC):
  """Stands for a value that is made when the whole pickle has been read."""

  __slots__ = ()
  __setstate__ = refuse_state

  @abc.abstractmethod
  def value(self) -> Any:
    """Returns the value; raises `ValueError` if it cannot be made."""


class Unpickler(pickle.Unpickler):
  """Finds stand-ins alone. What it loads has to go through `plain`."""

  def __init__(
    self,
    file: IO[bytes],
    path: str,
    stand_ins: Mapping[str, Callable[..., Any]] | None = None,
    allowed: str = 'plain data and numpy arrays',
  ):
    """Prepares to read one pickle from where `file` stands.

    Args:
      file: that it is in.
      path: of the file, for messages.
      stand_ins: what is called for further names, such as
        `collections.OrderedDict`.
      allowed: what may be in the file, for messages.
    """
    # Strings of Python 2 are read as bytes of the same numbers.
    super().__init__(file, encoding='latin1')
    self._path = path
    self._allowed = allowed
    functions = {
      'numpy.ndarray': _refuse_call,
      'numpy.dtype': _Dtype,
      'numpy.core.multiarray._reconstruct': lambda *_: _Array(),
      'numpy.core.multiarray.scalar': _scalar,
      'numpy.core.numeric._frombuffer': _from_buffer,
      '_codecs.encode': _encode,
      'builtins.bytes': _empty_bytes,
      **(stand_ins or {}),
    }
    self._found = {name: StandIn(f) for name, f in functions.items()}

  def find_class(self, module, name):
    """Returns the stand-in for a name, or raises."""
    # numpy 2 renamed its inner package, Python 3 its builtins.
    known = f'{module}.{name}'.replace('numpy._core.', 'numpy.core.')
    known = known.replace('__builtin__.', 'builtins.')
    if known in self._found:
      return self._found[known]
    raise InputError(
      f'{os.fspath(self._path)!r} asks to import {module}.{name}, which could '
      f'run code; allowed are {self._allowed}: do not open it, download it '
      'again from its authors'
    )

  def persistent_load(self, pid):
    """Raises: nothing outside of the file belongs to it."""
    raise ValueError('it refers to data outside of the file')


class _Dtype:
  """A type of numbers, as a pickle builds it."""

  __slots__ = ('_name', 'dtype')

  def __init__(self, name, *_):
    match = _DTYPE.fullmatch(name)
    if not match:
      raise ValueError(f'an array has dtype {name!r}, not numbers')
    self._name = match[1]
    self.dtype = np.dtype(self._name)

  def __setstate__(self, state):
    order = state[1]
    order = order.decode() if isinstance(order, bytes) else order
    self.dtype = np.dtype({'|': '='}.get(order, order) + self._name)


class _Array(Placeholder):
  """An array, as a pickle builds it."""

  __slots__ = ('array',)

  def __init__(self):
    self.array = None

  def __setstate__(self, state):
    _, shape, dtype, is_fortran, content = state
    self.array = _build(content, dtype, shape, 'F' if is_fortran else 'C')

  def value(self):
    if self.array is None:
      raise ValueError('an array has no content')
    return self.array


def _build(content, dtype, shape, order):
  if not isinstance(dtype, _Dtype):
    raise ValueError('an array has no dtype')
  if isinstance(content, str):
    content = content.encode('latin1')
  array = np.frombuffer(content, dtype.dtype)
  return array.reshape(shape, order=order).astype(dtype.dtype.newbyteorder('='))


def _scalar(dtype, content):
  return _build(content, dtype, (), 'C')[()]


def _from_buffer(content, dtype, shape, order):
  array = _Array()
  array.array = _build(bytes(content), dtype, shape, order)
  return array


def _encode(text, encoding):
  if encoding not in ('latin1', 'latin-1'):
    raise ValueError(f'bytes are encoded as {encoding!r}')
  return text.encode('latin1')


def _empty_bytes():
  return b''  # Old protocols have no constant for it.


def _refuse_call(*_):
  raise ValueError('an array is made in an unusual way')


def plain(loaded: Any) -> Any:
  """Returns data with values in the place of what stood for them.

  Args:
    loaded: what `Unpickler.load` gave.

  Raises:
    ValueError: if there are things for which there is no value.
  """
  return _plain(loaded, {})


def _plain(value: Any, known: dict[int, Any]) -> Any:
  """See `plain`.

  Args:
    value: as it was read.
    known: what was returned, by the id of what it is for: a list that stands in
      many places is gone through once.
  """
  if id(value) in known:
    return known[id(value)]
  result = value
  if isinstance(value, Placeholder):
    result = value.value()
  elif isinstance(value, dict):
    result = {
      _plain(key, known): _plain(item, known) for key, item in value.items()
    }
  elif isinstance(value, (list, tuple)):
    result = type(value)(_plain(item, known) for item in value)
  elif isinstance(value, (StandIn, _Dtype)):
    raise ValueError('it holds a type where data are expected')
  known[id(value)] = result
  return result
