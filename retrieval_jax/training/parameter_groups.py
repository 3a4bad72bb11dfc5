"""Which parameters train, how fast, and from when on.

A parameter is called by its path, `backbone/conv_0/kernel`, `pooling/p`,
`projection/kernel`, `head/proxies`, `loss/...`: the embedder's without its
name in front. Parts are chosen by regular expressions that match a whole path.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from retrieval_jax.core.errors import InputError

BACKBONE = 'backbone/.*'
_EMBEDDER = 'embedder/'


def map_with_name(function, params: Any, *others: Any) -> Any:
  """Maps a function of (name, leaf, ...) over a tree of parameters."""

  def call(path, *leaves):
    keys = [str(key.key) for key in path]
    return function('/'.join(keys).removeprefix(_EMBEDDER), *leaves)

  return jax.tree.map_with_path(call, params, *others)


def matches(params: Any, patterns: Sequence[str]) -> Any:
  """Returns the tree of whether a parameter's path matches one of patterns.

  Example:
    >>> params = {'embedder': {'backbone': {'conv_0': 0}}, 'head': {'w': 0}}
    >>> matches(params, ('backbone/.*',))
    {'embedder': {'backbone': {'conv_0': True}}, 'head': {'w': False}}
  """

  def match(name, _):
    return any(re.fullmatch(pattern, name) for pattern in patterns)

  return map_with_name(match, params)


def freeze(params: Any, patterns: Sequence[str]) -> Any:
  """Returns the parameters, those that match without a gradient.

  What only leads to them is not differentiated at all.
  """
  if not patterns:
    return params
  return jax.tree.map(
    lambda leaf, frozen: jax.lax.stop_gradient(leaf) if frozen else leaf,
    params,
    matches(params, patterns),
  )


def learning_rates(
  params: Any,
  layers: Sequence[str],
  *,
  decay: float = 1.0,
  backbone: float = 1.0,
  head: float = 1.0,
) -> Any:
  """Returns the tree of factors of the learning rate.

  backbone decay^(L - l) for layer l = 0, ..., L - 1 of the backbone, first to
  last; `head` for the proxies, 1 for what is between.

  Args:
    params: a tree of them, or of what goes with them.
    layers: regular expressions of paths in the backbone, first to last. What
      one of them matches is one layer, or one for each value of the numbers in
      its groups.
    decay: in (0, 1].
    backbone: above 0.
    head: above 0.

  Example:
    >>> params = {
    ...   'embedder': {
    ...     'backbone': {'conv_0': 0, 'conv_1': 0}, 'projection': 0
    ...   },
    ...   'head': {'proxies': 0},
    ... }
    >>> rates = learning_rates(params, [r'conv_(\\d+)'], decay=0.5, head=9.0)
    >>> rates['embedder']
    {'backbone': {'conv_0': 0.25, 'conv_1': 0.5}, 'projection': 1.0}
    >>> rates['head']
    {'proxies': 9.0}

  References:
    Bao et al., BEiT: BERT Pre-Training of Image Transformers, ICLR 2022,
    appendix (layer-wise learning-rate decay).
  """
  prefix = BACKBONE.removesuffix('.*')
  keys = set()

  def key(name):
    inside = name.removeprefix(prefix)
    for index, pattern in enumerate(layers):
      if found := re.fullmatch(pattern, inside):
        # What stands before the blocks of a stage has no number of its own.
        numbers = (-1 if g is None else int(g) for g in found.groups())
        return index, *numbers
    raise ValueError(f'{name} is in none of the layers {list(layers)}')

  def collect(name, _):
    if name.startswith(prefix):
      keys.add(key(name))

  map_with_name(collect, params)
  order = {found: depth for depth, found in enumerate(sorted(keys))}

  def rate(name, _):
    if name.startswith(prefix):
      return float(backbone * decay ** (len(order) - order[key(name)]))
    return float(head) if name.startswith('head/') else 1.0

  return map_with_name(rate, params)


def check_frozen(params: Any, patterns: Sequence[str]) -> None:
  """Raises `InputError` for patterns that match nothing, or everything.

  Args:
    params: arrays or their shapes.
    patterns: `optimizer.frozen`.
  """
  names = jax.tree.leaves(map_with_name(lambda name, _: name, params))
  for pattern in patterns:
    if not any(re.fullmatch(pattern, name) for name in names):
      some = sorted({_part(name) for name in names})
      raise InputError(
        f'optimizer.frozen has {pattern!r}, which matches no parameter; '
        f'allowed are regular expressions of whole paths, such as '
        f"'{some[0]}/.*'; there are: {', '.join(some)}"
      )
  if all(jax.tree.leaves(matches(params, patterns))):
    raise InputError(
      f'optimizer.frozen is {tuple(patterns)!r}, which leaves nothing to '
      'train; allowed is a part of the parameters'
    )


def _part(name: str) -> str:
  """Returns the part of the network a parameter is in, two levels deep."""
  parts = name.split('/')
  return '/'.join(parts[: 2 if parts[0] == 'backbone' else 1])


def describe(params: Any, config: Mapping[str, Any]) -> str:
  """Returns what trains, for the log.

  Args:
    params: arrays or their shapes.
    config: `config.optimizer`.

  Example:
    >>> params = {'embedder': {'backbone': {'w': np.zeros(6)}},
    ...           'head': {'proxies': np.zeros(4)}}
    >>> describe(params, {'frozen': ('backbone/.*',), 'head_only_steps': 0})
    '4 of 10 parameters train; frozen: backbone/w'
  """
  sizes = jax.tree.map(lambda leaf: int(np.prod(leaf.shape)), params)
  total = sum(jax.tree.leaves(sizes))

  def trained(patterns):
    return sum(
      size
      for size, frozen in zip(
        jax.tree.leaves(sizes),
        jax.tree.leaves(matches(params, patterns)),
        strict=True,
      )
      if not frozen
    )

  text = f'{trained(config["frozen"]):,} of {total:,} parameters train'
  if config['frozen']:
    frozen = map_with_name(
      lambda name, hit: _part(name) if hit else None,
      matches(params, config['frozen']),
    )
    text += f'; frozen: {", ".join(sorted(set(jax.tree.leaves(frozen))))}'
  if config['head_only_steps']:
    first = trained((*config['frozen'], BACKBONE))
    text += f'; {first:,} in the first {config["head_only_steps"]:,} steps'
  return text
