"""Reads pickles of plain data without running anything that is in them.

A pickle is a program: it may import and call whatever it names. Here it gets
stand-ins for the few names that dictionaries, lists, strings, numbers and numpy
arrays of numbers need, made anew for each file, and is refused for any other.
"""

import io
import os
import pickle
import re
from typing import Any

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
  try:
    with open(path, 'rb') as file:
      content = file.read()
  except OSError as error:
    raise InputError(
      f'{os.fspath(path)!r} cannot be read: {error.strerror}; allowed is a '
      'pickle file: correct the path'
    ) from error
  try:
    data = _Unpickler(content, path).load()
    return _plain(data, {})
  except InputError:
    raise
  except Exception as error:  # A damaged pickle raises whatever it leads to.
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise InputError(
      f'{os.fspath(path)!r} is no pickle, or a damaged one ({reason}); allowed '
      'is the file as its authors publish it: download it again'
    ) from error


class _Unpickler(pickle.Unpickler):
  """Finds stand-ins alone."""

  def __init__(self, content: bytes, path: str):
    # Strings of Python 2 are read as bytes of the same numbers.
    super().__init__(io.BytesIO(content), encoding='latin1')
    self._path = path
    self._found = {
      'numpy.ndarray': _StandIn(_refuse_call),
      'numpy.dtype': _StandIn(_Dtype),
      'numpy.core.multiarray._reconstruct': _StandIn(lambda *_: _Array()),
      'numpy.core.multiarray.scalar': _StandIn(_scalar),
      'numpy.core.numeric._frombuffer': _StandIn(_from_buffer),
      '_codecs.encode': _StandIn(_encode),
      'builtins.bytes': _StandIn(_empty_bytes),
    }

  def find_class(self, module, name):
    """Returns the stand-in for a name, or raises."""
    # numpy 2 renamed its inner package, Python 3 its builtins.
    known = f'{module}.{name}'.replace('numpy._core.', 'numpy.core.')
    known = known.replace('__builtin__.', 'builtins.')
    if known in self._found:
      return self._found[known]
    raise InputError(
      f'{os.fspath(self._path)!r} asks to import {module}.{name}, which could '
      'run code; allowed are plain data and numpy arrays: do not open it, '
      'download it again from its authors'
    )

  def persistent_load(self, pid):
    """Raises: nothing outside of the file belongs to it."""
    raise ValueError('it refers to data outside of the file')


class _StandIn:
  """Something to call, without attributes that a pickle could write."""

  __slots__ = ('_function',)

  def __init__(self, function):
    self._function = function

  def __call__(self, *args):
    return self._function(*args)


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


class _Array:
  """An array, as a pickle builds it."""

  __slots__ = ('array',)

  def __init__(self):
    self.array = None

  def __setstate__(self, state):
    _, shape, dtype, is_fortran, content = state
    self.array = _build(content, dtype, shape, 'F' if is_fortran else 'C')


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


def _plain(value: Any, known: dict[int, Any]) -> Any:
  """Returns data with arrays in the place of what stood for them.

  Args:
    value: as it was read.
    known: what was returned, by the id of what it is for: a list that stands in
      many places is gone through once.
  """
  if id(value) in known:
    return known[id(value)]
  plain = value
  if isinstance(value, _Array):
    if value.array is None:
      raise ValueError('an array has no content')
    plain = value.array
  elif isinstance(value, dict):
    plain = {
      _plain(key, known): _plain(item, known) for key, item in value.items()
    }
  elif isinstance(value, (list, tuple)):
    plain = type(value)(_plain(item, known) for item in value)
  elif isinstance(value, (_StandIn, _Dtype)):
    raise ValueError('it holds a type where data are expected')
  known[id(value)] = plain
  return plain
