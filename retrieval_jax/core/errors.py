"""The one exception for a user's mistake, and the words that mend it."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
  """A mistake in a config, a flag, a file or an argument.

  Its message is one line that names the key or the file, the value that came,
  what is allowed, and the cure. The commands print it without a traceback and
  exit with status 2; a defect of this project is any other exception.
  """


def unknown_name(key: str, name: object, allowed: Iterable[str]) -> InputError:
  """Returns the error for a name that is not in a registry.

  Args:
    key: what the name was given for, as the user wrote it (`loss.name`).
    name: the value that came.
    allowed: the names that exist.

  Returns:
    An `InputError` with the nearest match, ready to be raised.

  Example:
    >>> unknown_name('loss.name', 'cirle', ['circle', 'arcface'])
    InputError("loss.name is 'cirle'; did you mean 'circle'? Known: arcface, \
circle")
  """
  allowed = sorted(allowed)
  near = difflib.get_close_matches(str(name), allowed, n=1)
  hint = f'; did you mean {near[0]!r}?' if near else ','
  return InputError(
    f'{key} is {name!r}{hint} '
    f'{"Known" if near else "known"}: {", ".join(allowed)}'
  )
