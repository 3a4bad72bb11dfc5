"""The self-test passes what is right and fails what is not."""

import jax
import numpy as np
import pytest

from retrieval_jax import selftest as command
from retrieval_jax.core import collectives
from retrieval_jax.training import selftest


def found(config):
  return {check.name: check for check in selftest.run(config)}


def test_a_config_passes(make_config):
  config = make_config('triplet', model__normalization='batch')
  checks = found(config)
  assert all(check.passed for check in checks.values()), checks
  names = ' '.join(checks)
  for word in ('loss:', 'gradient:', 'BatchNorm:', 'padding:', 'bfloat16'):
    assert word in names
  assert f'{jax.device_count()} devices' in names


def test_a_gradient_that_stops_at_the_device_fails(make_config, monkeypatch):
  gather = collectives.all_gather_rows

  def local(x, axis_name):
    found = gather(x, axis_name)
    return found if axis_name is None else jax.lax.stop_gradient(found)

  monkeypatch.setattr(collectives, 'all_gather_rows', local)
  checks = found(make_config('circle'))
  failed = [name for name, check in checks.items() if not check.passed]
  assert failed == [f'gradient: {jax.device_count()} devices equal 1']
  assert 'FAILED' in selftest.table(list(checks.values()))


def test_nan_does_not_pass():
  assert not selftest.Check('x', float('nan'), 1.0).passed
  assert np.isnan(
    selftest.difference({'a': np.array([1.0, np.nan])}, {'a': np.ones(2)})
  )


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--config=configs/circel.py'], 'did you mean'),
    (['--config=configs/circle.py', '--devices=0'], '--devices=0; allowed'),
    (['--devices=2'], '--config'),
  ],
)
def test_mistakes_get_one_line(arguments, words, capsys):
  assert command.main(arguments) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert words in line


def test_the_exit_status_says_it(monkeypatch, capsys):
  good = selftest.Check('good', 0.0, 1.0)
  bad = selftest.Check('bad', 2.0, 1.0)
  arguments = ['--config=configs/circle.py']
  monkeypatch.setattr(selftest, 'run', lambda config: [good])
  assert command.main(arguments) == 0
  monkeypatch.setattr(selftest, 'run', lambda config: [good, bad])
  assert command.main(arguments) == 1
  assert 'FAILED' in capsys.readouterr().out
