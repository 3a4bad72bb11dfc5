"""The solutions of Google Landmarks v2, as its authors publish them."""

import csv
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from retrieval_jax.core import files
from retrieval_jax.core.errors import InputError


class Solution(NamedTuple):
  """What is right, for the two leaderboards.

  Attributes:
    public: image -> answers, of the public part of the test images.
    private: likewise.
    ignored: images that count for nothing.
  """

  public: dict[str, list[Any]]
  private: dict[str, list[Any]]
  ignored: frozenset[str]

  @property
  def both(self) -> dict[str, list[Any]]:
    """Both parts, as papers report them."""
    return self.public | self.private


def read_retrieval_solution(path: str) -> Solution:
  """Reads retrieval_solution_v2.1.csv: id, images, Usage.

  Returns:
    The ids of the images to find, by query; images between spaces, 'None' for
    what is no query (which is also marked Ignored).

  Raises:
    InputError: for a damaged file.
  """
  return _read_solution(path, 'images', _image_ids)


def read_recognition_solution(path: str) -> Solution:
  """Reads recognition_solution_v2.1.csv: id, landmarks, Usage.

  Returns:
    The numbers of the landmarks by test image, none where it shows none.

  Raises:
    InputError: for a damaged file.
  """
  return _read_solution(path, 'landmarks', _landmarks)


def _image_ids(text: str) -> list[str]:
  return [] if text == 'None' else text.split()


def _landmarks(text: str) -> list[int]:
  return [int(landmark) for landmark in text.split()]


def _read_solution(
  path: str, column: str, parse: Callable[[str], list[Any]]
) -> Solution:
  parts: dict[str, dict[str, list[Any]]] = {'Public': {}, 'Private': {}}
  ignored = set()
  for number, (key, text, usage) in read_rows(path, ('id', column, 'Usage')):
    if usage == 'Ignored':
      ignored.add(key)
      continue
    if usage not in parts:
      raise row_error(
        path, number, f'Usage is {usage!r}', 'Public, Private or Ignored'
      )
    try:
      answers = parse(text)
    except ValueError as error:
      raise row_error(
        path, number, f'{column} is {text!r}', 'numbers between spaces'
      ) from error
    if column == 'images' and not answers:
      raise row_error(
        path, number, f'{key!r} has no images to find', "Usage 'Ignored' then"
      )
    parts[usage][key] = answers
  return Solution(parts['Public'], parts['Private'], frozenset(ignored))


def read_rows(
  path: str, columns: tuple[str, ...]
) -> Iterator[tuple[int, tuple[str, ...]]]:
  """Yields (line number, the values of some columns), each id once.

  Args:
    path: of a CSV file.
    columns: the first of them is the id.

  Raises:
    InputError: for a damaged file.
  """
  try:
    files.check_regular(path)
    # With or without a byte order mark, which spreadsheets write.
    with open(path, newline='', encoding='utf-8-sig') as file:
      reader = csv.reader(file)
      header = next(reader, [])
      missing = [name for name in columns if name not in header]
      if missing:
        raise row_error(
          path, 1, f'there is no column {missing[0]!r}', ', '.join(columns)
        )
      picked = [header.index(name) for name in columns]
      seen = set()
      for row in reader:
        if not row:
          continue
        if len(row) != len(header):
          raise row_error(
            path, reader.line_num, f'{len(row)} fields', str(len(header))
          )
        values = tuple(row[place].strip() for place in picked)
        if values[0] in seen:
          raise row_error(
            path, reader.line_num, f'id {values[0]!r} is repeated', 'it once'
          )
        seen.add(values[0])
        yield reader.line_num, values
  except OSError as error:
    raise InputError(
      f'{os.fspath(path)!r} cannot be read: {error.strerror}; allowed is a CSV '
      'file: correct the path'
    ) from error
  except (UnicodeDecodeError, csv.Error) as error:
    raise InputError(
      f'{os.fspath(path)!r} is no CSV file: {error}; allowed is the file as '
      'its authors publish it: download it again'
    ) from error
  if not seen:
    raise InputError(
      f'{os.fspath(path)!r} has no rows below its header; allowed is at least '
      'one: download it again'
    )


def row_error(path: str, number: int, problem: str, allowed: str) -> InputError:
  """Returns what is wrong with a line of a file."""
  return InputError(
    f'{os.fspath(path)!r}, line {number}: {problem}; allowed is {allowed}: '
    'correct the file, or download it again'
  )
