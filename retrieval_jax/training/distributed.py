"""Several processes: how they find each other, and what they agree on."""

import contextlib
import signal
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from retrieval_jax.core.errors import InputError


def initialize(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the other processes of a run; call it before any other use of JAX.

  Args:
    coordinator_address: HOST:PORT of process 0, reached by all.
    num_processes: how many there are.
    process_id: which one this is, from 0. With all three None they are taken
      from SLURM, Open MPI or Kubernetes, as `jax.distributed.initialize` finds
      them.

  Raises:
    InputError: some of the three given and others not, a number out of range,
      or nothing found.
  """
  given = {
    '--coordinator_address': coordinator_address,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  missing = [flag for flag, value in given.items() if value is None]
  if 0 < len(missing) < 3:
    raise InputError(
      f'{" and ".join(missing)} missing; allowed are all three of '
      f'{", ".join(given)}, or --distributed alone on SLURM, Open MPI or '
      'Kubernetes'
    )
  if not missing and not 0 <= process_id < num_processes:
    raise InputError(
      f'--process_id is {process_id}; allowed is 0 to {num_processes - 1}, one '
      f'each for --num_processes={num_processes}'
    )
  try:
    jax.distributed.initialize(coordinator_address, num_processes, process_id)
  except (ValueError, RuntimeError) as error:
    raise InputError(
      f'--distributed: {" ".join(str(error).split())}; give '
      f'{", ".join(given)}, the same port open on all hosts'
    ) from error


def any_process(flag: bool) -> bool:
  """Returns whether the flag is set on any process, the same on all."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


class StopRequest:
  """Whether SIGTERM (or a first Ctrl-C) has asked the run to stop."""

  def __init__(self):
    """Starts with nothing asked for."""
    self.received = False

  def _receive(self, signal_number, frame):
    self.received = True
    # A second Ctrl-C, if the first takes too long, ends at once.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def catch_stop() -> Iterator[StopRequest]:
  """Turns SIGTERM and Ctrl-C into a request that the loop reads."""
  request = StopRequest()
  handlers = {
    number: signal.signal(number, request._receive)
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    yield request
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
