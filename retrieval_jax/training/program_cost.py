"""What a program costs, counted from its jaxpr: nothing is compiled or run.

Operations are those of convolutions and matrix products, whose shapes say them
exactly. Memory is a model of what a compiler keeps: element-wise operations are
fused into what reads them and have no array of their own, unless a convolution
or a matrix product reads it; every other array lives from its operation to its
last reader. The compiler may order and copy otherwise, so the peak is an
estimate.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend import core

# Of these, and of what only computes its indices, a compiler makes an array.
# All others map element to element, and are fused into what reads them.
_UNFUSED = frozenset(
  (
    'all_gather all_to_all approx_top_k argmax argmin cholesky cond '
    'conv_general_dilated cumlogsumexp cummax cummin cumprod cumsum '
    'custom_root dot_general eigh gather optimization_barrier ppermute pmax '
    'pmin psum psum_scatter ragged_dot random_bits random_wrap reduce_and '
    'reduce_max reduce_min reduce_or reduce_prod reduce_scatter reduce_sum '
    'reduce_window reduce_window_max reduce_window_sum scan scatter '
    'scatter_add select_and_gather_add select_and_scatter_add sort '
    'threefry2x32 top_k while'
  ).split()
)
# What reads its operands while they are computed.
_FUSES_OPERANDS = ('reduce_', 'arg')
_HAVE_BODIES = ('cond', 'scan', 'while')


class Cost(NamedTuple):
  """What a program costs on one device.

  Attributes:
    flops: of its convolutions and matrix products, two for a multiplication and
      addition; positions in the padding count as others do.
    peak_bytes: at the worst moment, of all but the arguments; the results stand
      beside what they replace until the program ends, and are among it.
    traffic_bytes: that are read and written, each array once by each operation.
  """

  flops: int
  peak_bytes: int
  traffic_bytes: int


class _Operation(NamedTuple):
  """An equation whose variables are numbers, each of one value."""

  equation: core.JaxprEqn
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]


def of(program: core.ClosedJaxpr | core.Jaxpr) -> Cost:
  """Counts a program, as `jax.make_jaxpr` gives it.

  A `while` loop counts as one turn, since its number is not known.

  Args:
    program: any.

  Returns:
    Its cost.

  Example:
    >>> shape = jax.ShapeDtypeStruct((8, 8), 'float32')
    >>> of(jax.make_jaxpr(lambda a: (a @ a).sum())(shape))
    Cost(flops=1024, peak_bytes=260, traffic_bytes=772)
  """
  jaxpr = getattr(program, 'jaxpr', program)
  sizes: dict[int, int] = {}
  numbers = itertools.count()
  environment = {
    var: next(numbers) for var in (*jaxpr.constvars, *jaxpr.invars)
  }
  arguments = set(environment.values())
  sizes.update((n, _size(var.aval)) for var, n in environment.items())
  operations = list(_flatten(jaxpr, environment, sizes, numbers))
  results = [
    environment[atom]
    for atom in jaxpr.outvars
    if not isinstance(atom, core.Literal)
  ]
  bodies = [_body(operation.equation) for operation in operations]
  flops = sum(
    body.flops + _flops(operation.equation)
    for operation, body in zip(operations, bodies, strict=True)
  )
  peak, traffic = _memory(operations, bodies, sizes, arguments, results)
  return Cost(flops, peak, traffic + sum(b.traffic_bytes for b in bodies))


def bytes_of(tree: Any) -> int:
  """Returns the bytes of all leaves of a tree of arrays or shapes.

  Example:
    >>> bytes_of({'a': jax.ShapeDtypeStruct((3, 2), 'bfloat16')})
    12
  """
  return sum(map(_size, jax.tree.leaves(tree)))


def _size(array: Any) -> int:
  dtype = getattr(array, 'dtype', None)
  return math.prod(array.shape) * dtype.itemsize if dtype is not None else 0


def _flatten(
  jaxpr: core.Jaxpr,
  environment: dict[core.Var, int],
  sizes: dict[int, int],
  numbers: Iterator[int],
) -> Iterator[_Operation]:
  """Yields the equations in order, those of inner functions in their place."""
  for equation in jaxpr.eqns:
    inputs = [
      None if isinstance(atom, core.Literal) else environment[atom]
      for atom in equation.invars
    ]
    inner = _inlined(equation)
    if inner is not None:
      body = getattr(inner, 'jaxpr', inner)
      scope = {}
      for var, number in zip(body.invars, inputs, strict=True):
        scope[var] = next(numbers) if number is None else number
      for var in body.constvars:
        scope[var] = next(numbers)
      yield from _flatten(body, scope, sizes, numbers)
      for var, atom in zip(equation.outvars, body.outvars, strict=True):
        is_known = not isinstance(atom, core.Literal)
        environment[var] = scope[atom] if is_known else next(numbers)
      continue
    outputs = []
    for var in equation.outvars:
      environment[var] = number = next(numbers)
      sizes[number] = _size(var.aval)
      outputs.append(number)
    known = tuple(number for number in inputs if number is not None)
    yield _Operation(equation, known, tuple(outputs))


def _inlined(equation: core.JaxprEqn) -> Any:
  """Returns the function that an equation calls once, or None."""
  if equation.primitive.name in _HAVE_BODIES:
    return None
  for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr'):
    if key in equation.params:
      return equation.params[key]
  return None


def _body(equation: core.JaxprEqn) -> Cost:
  """Returns the cost of the inner programs of a loop or a branch."""
  name, params = equation.primitive.name, equation.params
  if name == 'scan':
    turn = of(params['jaxpr'])
    return turn._replace(
      flops=turn.flops * params['length'],
      traffic_bytes=turn.traffic_bytes * params['length'],
    )
  if name == 'while':
    return of(params['body_jaxpr'])
  if name == 'cond':
    return Cost(*map(max, zip(*map(of, params['branches']), strict=True)))
  return Cost(0, 0, 0)


def _flops(equation: core.JaxprEqn) -> int:
  """Returns the operations of a convolution or a matrix product."""
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    terms = math.prod(shape[axis] for axis in contracted)
  elif name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    _, features, *window = params['dimension_numbers'].rhs_spec
    terms = kernel[features] * math.prod(kernel[axis] for axis in window)
    # Zeros between the places of a map are no work: the gradient at the input
    # costs as much as the convolution.
    terms /= math.prod(params['lhs_dilation'])
  else:
    return 0
  return round(2 * equation.outvars[0].aval.size * terms)


def _memory(
  operations: list[_Operation],
  bodies: list[Cost],
  sizes: Mapping[int, int],
  arguments: set[int],
  results: list[int],
) -> tuple[int, int]:
  """Returns the bytes that live at the worst moment, and those that move."""
  names = [operation.equation.primitive.name for operation in operations]
  arrays = arguments | set(results)
  for name, operation in zip(names, operations, strict=True):
    if name in _UNFUSED:
      arrays.update(operation.outputs)
      if not name.startswith(_FUSES_OPERANDS):
        arrays.update(operation.inputs)
  # The arrays that each value is computed from, itself if it is one.
  origins: dict[int, frozenset[int]] = {n: frozenset((n,)) for n in arguments}
  last_reader: dict[int, int] = {}
  traffic = 0
  for i, operation in enumerate(operations):
    read = frozenset().union(
      *(origins.get(n, frozenset()) for n in operation.inputs)
    )
    for number in operation.outputs:
      origins[number] = frozenset((number,)) if number in arrays else read
      last_reader.setdefault(number, i)
    made = [number for number in operation.outputs if number in arrays]
    if made:
      last_reader.update(dict.fromkeys(read, i))
      # The bodies of loops are counted by themselves.
      if names[i] not in _HAVE_BODIES:
        traffic += sum(sizes.get(number, 0) for number in (*read, *made))
  for number in results:
    last_reader.update(
      dict.fromkeys(origins.get(number, ()), len(operations) - 1)
    )
  ends: dict[int, list[int]] = {}
  for number, i in last_reader.items():
    if number in arrays and number not in arguments:
      ends.setdefault(i, []).append(number)
  live = peak = 0
  for i, operation in enumerate(operations):
    made = sum(sizes[n] for n in operation.outputs if n in arrays)
    freed = sum(sizes.get(n, 0) for n in ends.get(i, ()))
    # What maps element to element is written over what it reads last.
    before = live + made - (freed if names[i] not in _UNFUSED else 0)
    peak = max(peak, before + bodies[i].peak_bytes)
    live += made - freed
  return peak, traffic
