"""A plan is what a run really has, where that can be seen."""

import functools
import pathlib
import re

import jax
import pytest

from retrieval_jax import plan as command
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import (
  devices,
  planner,
  planner_table,
  program_cost,
  steps,
  tasks,
)
from retrieval_jax.training.experiment import make_experiment

LARGE = 2**40
PAGES = pathlib.Path(__file__).parents[2] / 'docs'


@pytest.mark.parametrize('sharded', [False, True])
def test_state_is_what_the_devices_hold(make_config, sharded):
  config = make_config(
    'arcface', head__sharded=sharded, optimizer__ema_decay=0.99
  )
  experiment = make_experiment(config)
  state = experiment.replicate(experiment.stages[0].initial_state())
  held = sum(
    leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)
  )
  facts = planner.find_facts(config)
  found = planner.measure(config, facts, jax.device_count(), 16).memory
  # Besides: the step and whether it diverged.
  assert sum(found.state.values()) == held - 4 - 1
  assert found.state['moving averages'] > 0
  proxies = state.params['head']['proxies'].addressable_shards[0].data
  assert found.state['parameters of the head'] == proxies.nbytes
  rows = 16 if sharded else 4
  assert found.cosines == 4 * rows * proxies.shape[1]


def test_memory_and_work_are_near_those_of_the_compiled_step(make_config):
  config = make_config('circle')
  experiment = make_experiment(config)
  (stage,) = experiment.stages
  task = tasks.make_task(
    config,
    config_lib.Classes.of(experiment.dataset),
    experiment.dataset.image_shape,
    axis_name=None,
  )
  step = functools.partial(
    steps.train_step,
    task=task,
    optimizer=stage.optimizer,
    schedule=stage.schedule,
    axis_name=None,
  )
  state = stage.initial_state()
  batch = {
    'images': jax.ShapeDtypeStruct((256, 8, 8, 1), 'uint8'),
    'labels': jax.ShapeDtypeStruct((256,), 'int32'),
  }
  compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
  cost = program_cost.of(jax.make_jaxpr(step)(state, batch))
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert temporary / planner.MARGIN < cost.peak_bytes < 1.5 * temporary
  # The compiler leaves the padding out, and counts what is element-wise.
  work = compiled.cost_analysis()['flops']
  assert 0.6 * work < cost.flops < 1.6 * work


def test_data_need_not_be_there(make_config):
  config = make_config(
    'arcface', data__name='gldv2', data__image_size=32, data__channels=3
  )
  config_lib.override(config, 'data.mean', '(0.5,)')
  facts = planner.find_facts(config, 1000, 50_000)
  assert facts.preprocessing.image_shape == (32, 32, 3)
  assert facts.num_images == 50_000
  found = planner.measure(config, facts, 4, 16)
  assert found.memory.cosines == 4 * 4 * 1000


@pytest.fixture
def linear_memory(monkeypatch):
  """Takes 1000 bytes, and of each image 2, with the margin 4."""

  def measure(config, facts, num_devices, batch_size):
    rows = batch_size // num_devices
    memory = planner.Memory({'optimizer': 1000}, 0, 2 * rows, 0, 0)
    return planner.Step(memory, flops=rows, traffic=rows)

  monkeypatch.setattr(planner, 'measure', measure)


def test_what_does_not_fit_is_said(make_config, linear_memory):
  config = make_config()
  (found,) = planner.make_plans(config, 2, 1000 + 4 * 20)
  assert found.step.memory.total == 1000 + 4 * 8
  assert found.largest_batch == 40
  text = planner_table.table([found], {'x': devices.Speed(1e3, None)}, 0.5)
  assert 'batch 16 fits into 0 MiB' in text
  assert '40, 20 on each device' in text
  (found,) = planner.make_plans(config, 2, 1002)
  assert found.largest_batch == 0
  text = planner_table.table([found], {}, 0.5)
  assert 'does NOT fit' in text and 'no batch fits' in text


def test_batches_are_multiples_of_devices_classes_and_chunks(
  make_config, linear_memory
):
  config = make_config(data__batch_size=24, gradient_cache__chunk_size=12)
  config.data.classes_per_batch = 3  # Of 8 images each.
  (found,) = planner.make_plans(config, 2, 1000 + 4 * 35)
  assert found.largest_batch == 48


def test_stages_are_planned_one_by_one(make_config, linear_memory):
  config = make_config(
    num_train_steps=None,
    stages=(
      {'num_train_steps': 7200, 'image_size': 8},
      {'num_epochs': 90, 'image_size': 16, 'batch_size': 8},
    ),
    model__pooling='average',
  )
  config.data.classes_per_batch = 0
  plans = planner.make_plans(config, 2, 1000 + 4 * 20)
  shapes = [plan.facts.preprocessing.image_shape for plan in plans]
  assert shapes == [(8, 8, 1), (16, 16, 1)]
  assert [plan.num_steps for plan in plans] == [7200, 900]
  assert [plan.largest_batch for plan in plans] == [40, 40]
  # 8 rows a device are one second of the first stage, 4 half a one.
  text = planner_table.table(plans, {'x': devices.Speed(16, None)}, 0.5)
  assert 'stage 2 of 2' in text
  assert text.splitlines()[-3:] == [
    'all 2 stages: 8100 steps, 0.0 MiB at most; they fit',
    'device           hours',
    'x                 2.12',
  ]


def test_no_batch_is_larger_than_the_data(make_config, linear_memory):
  (found,) = planner.make_plans(make_config(), 2, LARGE)
  assert found.largest_batch == found.facts.num_images == 80
  with pytest.raises(InputError, match='data.batch_size is 16; .* at most 12'):
    planner.make_plans(make_config(), 2, LARGE, num_images=12)


def test_chunks_bound_the_memory(make_config):
  # 64 rows a device either way.
  whole = make_config('circle', data__batch_size=256)
  chunks = make_config(
    'circle', data__batch_size=256, gradient_cache__chunk_size=32
  )
  facts = planner.find_facts(whole)
  all_at_once = planner.measure(whole, facts, 4, 256)
  in_chunks = planner.measure(chunks, facts, 4, 256)
  assert in_chunks.memory.temporary < all_at_once.memory.temporary
  assert in_chunks.flops > 1.2 * all_at_once.flops


@pytest.mark.parametrize('answer', [1, 2, 7, 31, 1000, 4096])
def test_largest_is_found_to_within_its_precision(answer):
  asked = []

  def total(size):
    asked.append(size)
    return 50 + 3 * size + size * size // 5000

  found = planner.largest(total, total(answer), first=8, most=4096)
  assert found <= answer < found + max(1, found // 32) + 1
  assert len(asked) < 12
  assert planner.largest(total, 3, first=8, most=4096) == 0


def test_command(capsys):
  arguments = ['--config=configs/arcface.py', '--device=rtx_3090']
  shape = ['--config.data.image_size=8', '--config.data.channels=1']
  size = ['--num_classes=100', '--num_images=32']
  assert command.main([*arguments, *shape, *size]) == 0
  text = capsys.readouterr().out
  for words in ('100 classes', '10 steps', 'exact', 'assumed', 'rtx_3090'):
    assert words in text
  assert 'fits into 18432 MiB' in text


@pytest.mark.parametrize('flag', ['devices', 'memory_fraction', 'utilisation'])
def test_the_page_says_what_the_default_is(flag):
  flags, _ = command.parse_flags(['--config=configs/circle.py'])
  default = str(getattr(flags, flag))
  page = (PAGES / 'planning.md').read_text()
  (row,) = [r for r in page.splitlines() if r.startswith(f'| `--{flag}` ')]
  assert re.search(rf'; {re.escape(default)}(,| \|)', row)


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--config=configs/circel.py', '--device=a100'], 'did you mean'),
    (['--config=configs/circle.py'], '--device_memory_gb=24'),
    (['--config=configs/circle.py', '--device=a10'], "did you mean 'a100'"),
    (['--config=configs/circle.py', '--devices=0'], '--devices'),
    (['--config=configs/circle.py', '--utilisation=30'], 'up to 1'),
    (['--config=configs/circle.py', '--flops_per_second=nan'], 'above 0'),
    (
      ['--config=configs/circle.py', '--device=a100', '--devices=5'],
      'multiple of the 5 devices',
    ),
    (
      [
        '--config=configs/circle.py:gldv2',
        '--device=a100',
        '--num_classes=9',
      ],
      '--num_images',
    ),
  ],
)
def test_mistakes_get_one_line(arguments, words, capsys):
  assert command.main(arguments) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert words in line
