"""Kinds of devices, and how long a step takes on each."""

from typing import NamedTuple


class Device(NamedTuple):
  """A kind of device, by the data sheet of its maker; dense, no sparsity.

  Attributes:
    memory_gb: in GiB.
    bandwidth: of its memory, in bytes a second.
    flops: a second, by `model.dtype`: bfloat16 summed in float32, and what JAX
      makes of float32 by default, which is TF32 if there is.
  """

  memory_gb: float
  bandwidth: float
  flops: dict[str, float]


DEVICES = {
  # It has float16 alone, which is not what is computed here.
  'v100': Device(16, 900e9, {'bfloat16': 15.7e12, 'float32': 15.7e12}),
  'rtx_3090': Device(24, 936e9, {'bfloat16': 71e12, 'float32': 35.6e12}),
  'a100': Device(80, 2039e9, {'bfloat16': 312e12, 'float32': 156e12}),
  'h100': Device(80, 3350e9, {'bfloat16': 989e12, 'float32': 494e12}),
}


class Speed(NamedTuple):
  """What a device does in a second.

  Attributes:
    flops: at its peak.
    bandwidth: bytes of its memory; None: as fast as one likes.
  """

  flops: float
  bandwidth: float | None


def seconds(
  flops: float, traffic: float, speed: Speed, utilisation: float
) -> float:
  """Returns the seconds of a step.

  t = max(flops / (u peak), bytes / bandwidth).

  Args:
    flops: of the step.
    traffic: bytes that it reads and writes.
    speed: of a device.
    utilisation: u, the share of its peak that is reached, in (0, 1].

  Example:
    >>> speed = Speed(flops=20e12, bandwidth=500e9)
    >>> seconds(6e12, 1e12, speed, utilisation=0.5)
    2.0

  References:
    Williams et al., Roofline, CACM 2009.
  """
  times = [flops / (speed.flops * utilisation)]
  if speed.bandwidth is not None:
    times.append(traffic / speed.bandwidth)
  return max(times)
