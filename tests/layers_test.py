"""Imports point to lower floors only, and a few libraries have one owner.

The sources are parsed, not imported: an import inside a function counts too.
"""

import ast
import pathlib

from absl.testing import parameterized

PACKAGE = 'retrieval_jax'
ROOT = pathlib.Path(__file__).parents[1] / PACKAGE

# A module has the floor of the longest entry that it is or lies under. It may
# import what is on a lower floor, and its own package on the same floor.
FLOORS = {
  'core': 0,
  'data': 1,
  'losses': 1,
  'metrics': 1,
  'models': 1,
  'neighbors': 1,
  'training': 2,
  'training.evaluation': 3,
  'training.experiment': 3,
  'training.proxy_init': 3,
  'training.report': 3,
  'training.results': 3,
  'training.step_inputs': 3,
  'training.steps': 3,
  'training.benchmarking': 4,
  'training.calibrating': 4,
  'training.doctor': 4,
  'training.finishing': 4,
  'training.indexing': 4,
  'training.loop': 4,
  'training.planner': 4,
  'training.planner_table': 4,
  'training.selftest': 4,
  '__init__': 5,
  'inference': 5,
  'main': 5,
  'calibrate': 5,
  'check_data': 5,
  'embed': 5,
  'evaluate': 5,
  'export_index': 5,
  'export_model': 5,
  'search': 5,
  'compare': 5,
  'plan': 5,
  'selftest': 5,
  'command_line': 5,
}

# Where a name may be used; everywhere else it may not. TensorFlow is there for
# clu and TensorFlow Datasets, and is never ours to call.
OWNERS = {
  'clu.metric_writers': {'training.reporting'},
  'jax.pmap': {
    'training.evaluation',
    'training.loop',
    'training.selftest',
    'training.sharding',
  },
  'orbax': {'training.checkpoint'},
  'tensorflow': set(),
}


def find_modules() -> dict[str, pathlib.Path]:
  """Returns {'losses.pair': path, ...}; a package goes by its own name."""
  modules = {}
  for path in sorted(ROOT.rglob('*.py')):
    parts = path.relative_to(ROOT).with_suffix('').parts
    if parts[-1] == '__init__' and len(parts) > 1:
      parts = parts[:-1]
    modules['.'.join(parts)] = path
  return modules


MODULES = find_modules()


def is_within(name: str, parent: str) -> bool:
  return name == parent or name.startswith(f'{parent}.')


def floor_of(module: str) -> tuple[str, int]:
  """Returns the package and the floor of a module."""
  entry = max((e for e in FLOORS if is_within(module, e)), key=len, default='')
  if not entry:
    raise AssertionError(f'{module} has no floor: add it to FLOORS')
  package = '' if FLOORS[entry] == 5 else entry.partition('.')[0]
  return package, FLOORS[entry]


def used_names(source: str) -> set[str]:
  """Returns the dotted names that a source imports or reaches by attributes.

  With `import jax` and `from clu import metric_writers as w`, the uses
  `jax.pmap` and `w.write` give `jax.pmap` and `clu.metric_writers.write`.
  """
  names, bound = set(), {}
  nodes = list(ast.walk(ast.parse(source)))
  for node in nodes:
    if isinstance(node, ast.Import):
      for alias in node.names:
        names.add(alias.name)
        first = alias.name.partition('.')[0]
        bound[alias.asname or first] = alias.name if alias.asname else first
    elif isinstance(node, ast.ImportFrom):
      origin = '.' * node.level + (node.module or '')
      for alias in node.names:
        names.add(f'{origin}.{alias.name}')
        bound[alias.asname or alias.name] = f'{origin}.{alias.name}'
    elif isinstance(node, ast.Call) and node.args:
      called = ast.unparse(node.func).rpartition('.')[2]
      if called == 'import_module' and isinstance(node.args[0], ast.Constant):
        names.add(node.args[0].value)
  for node in nodes:
    if isinstance(node, ast.Attribute):
      root, _, rest = ast.unparse(node).partition('.')
      if root in bound:
        names.add(f'{bound[root]}.{rest}')
  return names


def own_module(name: str) -> str | None:
  """Returns the module of this project that a dotted name leads to, if any."""
  if not is_within(name, PACKAGE):
    return None
  inside = name.removeprefix(PACKAGE).removeprefix('.')
  within = [m for m in [*MODULES, *FLOORS] if is_within(inside, m)]
  return max(within, key=len, default='__init__')


def find_violations(module: str, source: str) -> list[str]:
  """Returns one line for each import or use that the layering forbids."""
  package, floor = floor_of(module)
  found = []
  for name in sorted(used_names(source)):
    if name.startswith('.'):
      found.append(f'{module} imports {name}: name the package in full')
    target = own_module(name)
    if target is not None and target != module:
      target_package, target_floor = floor_of(target)
      same = package == target_package and floor == target_floor
      if target_floor >= floor and not same:
        found.append(
          f'{module} (floor {floor}) uses {target} (floor {target_floor})'
        )
    for owned, owners in OWNERS.items():
      if is_within(name, owned) and module not in owners:
        found.append(f'{module} uses {name}, allowed in {sorted(owners)}')
  return sorted(set(found))


class LayersTest(parameterized.TestCase):
  @parameterized.parameters(*MODULES)
  def test_module_keeps_to_its_floor(self, module):
    found = find_violations(module, MODULES[module].read_text())
    self.assertEqual(found, [], '\n'.join(found))

  @parameterized.parameters(
    ('core.arrays', 'from retrieval_jax.losses import pair'),
    ('core.arrays', 'import retrieval_jax'),
    ('losses.pair', 'from retrieval_jax import metrics'),
    ('losses.pair', 'from ..metrics import ranking'),
    ('losses.pair', 'def f():\n  import retrieval_jax.models.heads as h'),
    ('data.loader', 'import retrieval_jax\nretrieval_jax.losses.compute'),
    ('metrics.ranking', "importlib.import_module('retrieval_jax.neighbors')"),
    ('models.heads', 'from retrieval_jax.training import state'),
    ('training.config', 'from retrieval_jax.training import loop'),
    ('training.steps', 'from retrieval_jax.training.loop import train'),
    ('training.loop', 'from retrieval_jax import main'),
    ('losses.pair', 'import jax\nstep = jax.pmap(f)'),
    ('training.steps', 'from jax import pmap'),
    ('training.loop', 'import orbax.checkpoint as ocp'),
    ('main', 'from clu import metric_writers'),
    ('main', 'from clu.metric_writers import create_default_writer'),
    ('data.sources', 'def f():\n  import tensorflow as tf'),
  )
  def test_violation_is_found(self, module, source):
    self.assertNotEmpty(find_violations(module, source))

  @parameterized.parameters(
    ('losses.pair', 'from retrieval_jax.core import arrays'),
    ('losses.pair', 'from retrieval_jax.core.errors import InputError'),
    ('losses.pair', 'from retrieval_jax.losses import mining'),
    ('training.state', 'from retrieval_jax.training import optim'),
    ('training.steps', 'from retrieval_jax import losses\nlosses.compute'),
    ('training.loop', 'import jax\nstep = jax.pmap(f)'),
    ('training.checkpoint', 'import orbax.checkpoint as ocp'),
    ('training.reporting', 'from clu import metric_writers'),
    ('training.loop', 'from clu import periodic_actions'),
    ('data.sources', 'import tensorflow_datasets as tfds\ntfds.builder'),
    ('main', 'from retrieval_jax.training import loop\nloop.train()'),
    ('__init__', 'from retrieval_jax import inference'),
  )
  def test_allowed_import_passes(self, module, source):
    self.assertEqual(find_violations(module, source), [])

  def test_module_without_a_floor_is_an_error(self):
    with self.assertRaisesRegex(AssertionError, 'utils has no floor'):
      find_violations('utils', '')
