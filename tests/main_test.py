"""The command line: what it starts, and what a mistake gets."""

import pathlib

import pytest

from retrieval_jax import main
from retrieval_jax.training import loop

ROOT = pathlib.Path(__file__).parents[1]
CIRCLE = str(ROOT / 'configs' / 'circle.py')


@pytest.mark.parametrize(
  'argv, words',
  [
    ([], 'required: --config'),
    (['--config'], 'expected one argument'),
    (['--config=configs/circel.py'], 'circel.py'),
    ([f'--config={CIRCLE}', '--mode=eval'], 'invalid choice'),
    ([f'--config={CIRCLE}', '--workdirr=x'], "did you mean '--workdir'"),
    ([f'--config={CIRCLE}', 'train'], "'train'"),
    ([f'--config={CIRCLE}', '--config.seed'], 'has no value'),
    ([f'--config={CIRCLE}', '--config.sead=1'], "did you mean 'seed'"),
    ([f'--config={CIRCLE}', '--config.seed=one'], 'seed'),
    ([f'--config={CIRCLE}', '--config.loss.name=triplet'], 'triplet_margin'),
    ([f'--config={CIRCLE}:mnisst'], "did you mean 'mnist'"),
    ([f'--config={CIRCLE}', '--num_processes=2'], '--coordinator_address'),
    (
      [f'--config={CIRCLE}', '--num_processes=2', '--process_id=2']
      + ['--coordinator_address=localhost:1'],
      '--process_id is 2; allowed is 0 to 1',
    ),
    ([f'--config={CIRCLE}', '--distributed'], '--distributed: '),
    ([f'--config={CIRCLE}', '--workdir=README.md'], 'README.md is a file'),
    (
      [f'--config={CIRCLE}', '--mode=evaluate', '--workdir=no_such_run'],
      'no_such_run is not the workdir of a run',
    ),
  ],
)
def test_a_mistake_is_one_line_and_status_2(argv, words, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert main.main(argv) == 2
  error = capsys.readouterr().err
  assert words in error
  assert error.count('\n') == 1
  assert 'Traceback' not in error
  assert not (ROOT / 'no_such_run').exists()


def test_help(capsys):
  with pytest.raises(SystemExit) as status:
    main.main(['--help'])
  assert status.value.code == 0
  assert '--config=configs/circle.py' in capsys.readouterr().out


def test_workdirs_of_variants_do_not_collide():
  names = {
    main.default_workdir(config, overrides)
    for config in ('configs/circle.py', 'configs/circle.py:mnist')
    for overrides in ([], [('seed', '1')], [('data.dir', '/a/b')])
  }
  assert len(names) == 6
  assert main.default_workdir('c/circle.py', [('eval.metrics', 'x')]) == (
    'runs/circle'
  )


def test_a_folder_that_a_run_did_not_make(tmp_path, capsys):
  (tmp_path / 'thesis.tex').write_text('mine')
  assert main.main([f'--config={CIRCLE}', f'--workdir={tmp_path}']) == 2
  assert 'no run has made' in capsys.readouterr().err


@pytest.mark.parametrize('kind', [OSError, RuntimeError])
def test_a_disk_that_fills_up_during_the_run(
  kind, tmp_path, capsys, monkeypatch
):
  def fill(config, workdir):
    raise kind('events.out: No space left on device')

  monkeypatch.setattr(loop, 'train_and_evaluate', fill)
  assert main.main([f'--config={CIRCLE}', f'--workdir={tmp_path}']) == 2
  error = capsys.readouterr().err
  assert 'the disk is full' in error
  assert 'Traceback' not in error


def test_a_defect_of_ours_is_a_traceback(tmp_path, monkeypatch):
  def fail(config, workdir):
    raise RuntimeError('ours')

  monkeypatch.setattr(loop, 'train_and_evaluate', fail)
  with pytest.raises(RuntimeError, match='ours'):
    main.main([f'--config={CIRCLE}', f'--workdir={tmp_path}'])
