"""launch.sh with stand-ins for Python, pip and nvidia-smi: no real install.

The search path holds only the stand-ins and the few tools named below, so that
the machine's own Pythons and GPU driver play no part.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TOOLS = (
  'bash',
  'cat',
  'chmod',
  'cp',
  'dirname',
  'mkdir',
  'rm',
  'sleep',
  'touch',
)

# What launch.sh asks of a Python. `-c` goes to the real one where it is not
# about the version; the rest is written to the log.
PYTHON = """#!{bash}
version=$(cat "$0.version")
case "$1 $2" in
  *version_info*) echo "$version" ;;
  *ensurepip*) [[ ! -e "$0.no_venv" ]] ;;
  *_base_executable*) echo "$0" ;;
  '-c '*) exec {python} "$@" ;;
  '-m venv')
    echo "venv $version" >> "$LOG"
    mkdir -p "$3/bin" "$3/lib/python$version"
    cp "$0" "$3/bin/python"
    cp "$0.version" "$3/bin/python.version"
    ;;
  '-m pip')
    echo "pip $*" >> "$LOG"
    if [[ -e "$PIP_WAITS" ]]; then sleep 30; fi
    [[ ! -e "$PIP_FAILS" ]]
    ;;
  *)
    echo "run ${{*:2}}" >> "$LOG"
    echo "in $PWD with $PYTHONPATH" >> "$LOG"
    ;;
esac
"""


class Machine:
  """A folder with launch.sh, a search path of its own, and a log."""

  def __init__(self, path: pathlib.Path):
    self.repo = path / 'a repo'
    self.bin = path / 'bin'
    self.log = path / 'log'
    self.pip_waits = path / 'pip_waits'
    self.pip_fails = path / 'pip_fails'
    for folder in (self.repo, self.bin):
      folder.mkdir()
    shutil.copy(ROOT / 'launch.sh', self.repo)
    for name in ('-cpu', '', '-test'):
      self.requirements(name).write_text(f'of{name}\n')
    for name in TOOLS:
      (self.bin / name).symlink_to(shutil.which(name))
    self.env = {
      'PATH': str(self.bin),
      'LOG': str(self.log),
      'PIP_WAITS': str(self.pip_waits),
      'PIP_FAILS': str(self.pip_fails),
    }

  def requirements(self, name: str) -> pathlib.Path:
    return self.repo / f'requirements{name}.txt'

  def add_tool(self, name: str, text: str) -> pathlib.Path:
    path = self.bin / name
    path.write_text(text)
    path.chmod(0o755)
    return path

  def add_python(self, name: str, version: str) -> pathlib.Path:
    text = PYTHON.format(bash=shutil.which('bash'), python=sys.executable)
    path = self.add_tool(name, text)
    pathlib.Path(f'{path}.version').write_text(version)
    return path

  def add_gpu(self, listing: str = 'GPU 0: NVIDIA (UUID: GPU-1)'):
    self.add_tool('nvidia-smi', f'#!{shutil.which("bash")}\necho "{listing}"\n')

  def start(self, *args: str, cwd=None, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
      [self.repo / 'launch.sh', *args],
      env={**self.env, **env},
      cwd=cwd or self.repo,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def launch(self, *args: str, cwd=None, **env: str):
    """Returns the status, the error lines and what was done meanwhile."""
    self.log.write_text('')
    process = self.start(*args, cwd=cwd, **env)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors.splitlines(), self.done()

  def done(self) -> list[str]:
    return self.log.read_text().splitlines() if self.log.exists() else []

  def installed(self) -> list[list[str]]:
    """Returns the requirement files of each call of pip."""
    calls = [
      line.split(' -r ')[1:] for line in self.done() if line[:3] == 'pip'
    ]
    return [[pathlib.Path(file).name for file in call] for call in calls]


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)


def assert_one_line(result, *words):
  status, errors, done = result
  assert status == 2
  assert len(errors) == 1, errors
  assert errors[0].startswith('launch.sh: ')
  for word in words:
    assert word in errors[0]
  assert done == []


@pytest.mark.parametrize('version', ['3.11', '3.12', '3.13'])
def test_first_start_installs_then_runs(machine, version):
  machine.add_python('python3', version)
  status, _, done = machine.launch('--config=configs/circle.py', '--x', 'a b')
  assert status == 0
  assert machine.installed() == [['requirements-cpu.txt']]
  assert done[0] == f'venv {version}'
  assert done[2:] == [
    'run retrieval_jax.main --config=configs/circle.py --x a b',
    f'in {machine.repo} with {machine.repo}',
  ]


def test_second_start_installs_nothing(machine):
  machine.add_python('python3', '3.11')
  machine.launch('--a')
  status, errors, done = machine.launch('--a')
  assert (status, errors) == (0, [])
  assert [line.split()[0] for line in done] == ['run', 'in']


def test_other_folder_keeps_its_file_names(machine, tmp_path):
  machine.add_python('python3', '3.11')
  *_, done = machine.launch('--a', cwd=tmp_path, PYTHONPATH='/other')
  assert done[-1] == f'in {tmp_path} with {machine.repo}:/other'


@pytest.mark.parametrize('version', ['2.7', '3.10', '3.14'])
def test_other_version_is_refused(machine, version):
  machine.add_python('python3', version)
  result = machine.launch('--a')
  assert_one_line(result, '>=3.11,<3.14', f'python3, which is {version}')
  assert not (machine.repo / '.venv').exists()


def test_no_python_is_refused(machine):
  assert_one_line(machine.launch('--a'), '>=3.11,<3.14', 'no python3')


def test_python_without_venv_is_refused(machine):
  python = machine.add_python('python3', '3.12')
  pathlib.Path(f'{python}.no_venv').touch()
  assert_one_line(machine.launch('--a'), 'apt install python3.12-venv')


def test_named_version_is_found_where_python3_does_not_fit(machine):
  machine.add_python('python3', '3.9')
  machine.add_python('python3.12', '3.12')
  machine.add_python('python3.11', '3.11')
  assert machine.launch('--a')[2][0] == 'venv 3.12'


def test_a_python_that_cannot_run_is_passed_over(machine):
  machine.add_tool('python3', f'#!{shutil.which("bash")}\nexit 127\n')
  machine.add_python('python3.11', '3.11')
  assert machine.launch('--a')[2][0] == 'venv 3.11'


def test_variable_names_the_python(machine):
  machine.add_python('python3', '3.11')
  other = machine.add_python('other', '3.13')
  assert machine.launch('--a', PYTHON=str(other))[2][0] == 'venv 3.13'
  # The environment stays with it, until another version is asked for.
  assert machine.launch('--a')[2][0].startswith('run')
  assert machine.launch('--a', PYTHON='python3')[2][0] == 'venv 3.11'


def test_variable_that_does_not_fit_is_refused(machine):
  machine.add_python('python3', '3.11')
  other = machine.add_python('other', '3.14')
  result = machine.launch('--a', PYTHON=str(other))
  assert_one_line(result, f'{other}, which is 3.14')
  result = machine.launch('--a', PYTHON='nothing')
  assert_one_line(result, 'nothing, which does not run')


def test_gpu_gets_its_requirements(machine):
  machine.add_python('python3', '3.11')
  machine.add_gpu()
  machine.launch('--a')
  assert machine.installed() == [['requirements-cpu.txt', 'requirements.txt']]


def test_driver_without_gpu_counts_as_none(machine):
  machine.add_python('python3', '3.11')
  machine.add_gpu('No devices found.')
  machine.launch('--a')
  assert machine.installed() == [['requirements-cpu.txt']]


def test_gpu_that_comes_later_is_served_and_one_that_goes_does_no_harm(machine):
  machine.add_python('python3', '3.11')
  machine.launch('--a')
  machine.add_gpu()
  machine.launch('--a')
  assert machine.installed() == [['requirements-cpu.txt', 'requirements.txt']]
  (machine.bin / 'nvidia-smi').unlink()
  machine.launch('--a')
  assert machine.installed() == []


def test_changed_requirements_are_installed_in_place(machine):
  machine.add_python('python3', '3.11')
  machine.launch('--a')
  machine.requirements('-cpu').write_text('changed\n')
  *_, done = machine.launch('--a')
  assert done[0].startswith('pip')
  machine.launch('--a')
  assert machine.installed() == []


def test_system_python_that_was_upgraded_gets_a_new_environment(machine):
  machine.add_python('python3', '3.11')
  machine.launch('--a')
  for python in (machine.bin / 'python3', machine.repo / '.venv/bin/python'):
    pathlib.Path(f'{python}.version').write_text('3.12')
  *_, done = machine.launch('--a')
  assert [line.split()[0] for line in done] == ['venv', 'pip', 'run', 'in']


def test_test_command_adds_its_tools_once(machine, tmp_path):
  machine.add_python('python3', '3.11')
  *_, done = machine.launch('test', '-m', 'slow', cwd=tmp_path)
  wanted = [['requirements-cpu.txt'], ['requirements-test.txt']]
  assert machine.installed() == wanted
  assert done[-2] == 'run pytest -m slow'
  assert done[-1].startswith(f'in {machine.repo} ')
  machine.launch('test')
  assert machine.installed() == []


def test_failed_installation_is_said_and_taken_up_again(machine):
  machine.add_python('python3', '3.11')
  machine.pip_fails.touch()
  status, errors, _ = machine.launch('--a')
  assert status == 1
  assert 'takes it up again' in errors[-1]
  machine.pip_fails.unlink()
  status, _, done = machine.launch('--a')
  assert status == 0
  assert [line.split()[0] for line in done] == ['venv', 'pip', 'run', 'in']


def wait_for_pip(machine):
  deadline = time.monotonic() + 30
  while not machine.installed():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_killed_installation_is_taken_up_again(machine):
  machine.add_python('python3', '3.11')
  machine.pip_waits.touch()
  process = machine.start('--a')
  wait_for_pip(machine)
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate()
  machine.pip_waits.unlink()
  status, _, done = machine.launch('--a')
  assert status == 0
  assert [line.split()[0] for line in done] == ['venv', 'pip', 'run', 'in']
  machine.launch('--a')
  assert machine.installed() == []


def test_two_starts_at_once_install_once(machine):
  machine.add_python('python3', '3.11')
  processes = [machine.start('--a') for _ in range(4)]
  for process in processes:
    process.communicate(timeout=60)
  assert [process.returncode for process in processes] == [0] * 4
  assert machine.installed() == [['requirements-cpu.txt']]
  assert sum(line.startswith('run') for line in machine.done()) == 4


def test_environment_of_another_maker_is_completed_and_never_removed(machine):
  python = machine.add_python('python3', '3.11')
  venv = machine.repo / '.venv'
  (venv / 'bin').mkdir(parents=True)
  (venv / 'lib' / 'python3.11').mkdir(parents=True)
  (venv / 'own').touch()
  shutil.copy(python, venv / 'bin' / 'python')
  (venv / 'bin' / 'python.version').write_text('3.11')
  machine.pip_fails.touch()
  machine.launch('--a')
  machine.pip_fails.unlink()
  status, _, done = machine.launch('--a')
  assert status == 0
  assert [line.split()[0] for line in done] == ['pip', 'run', 'in']
  (venv / 'bin' / 'python.version').write_text('3.9')
  assert_one_line(machine.launch('--a'), '.venv is not', 'move it away')
  assert (venv / 'own').exists()


def test_tensorboard_without_a_run_is_one_line(machine):
  machine.add_python('python3', '3.11')
  (machine.repo / 'runs' / 'empty').mkdir(parents=True)
  result = machine.launch('tensorboard')
  assert_one_line(result, f'{machine.repo}/runs', '--logdir=DIR')


def test_tensorboard_takes_the_latest_run(machine):
  machine.add_python('python3', '3.11')
  for name, when in [('old', 2000), ('newest', 3000), ('oldest', 1000)]:
    file = machine.repo / 'runs' / name / 'events.out.tfevents.1.host'
    file.parent.mkdir(parents=True)
    file.touch()
    os.utime(file, (when, when))
  *_, done = machine.launch('tensorboard', '--port=6007')
  assert done[-2] == 'run tensorboard.main --port=6007 --logdir=runs/newest'
  *_, done = machine.launch('tensorboard', '--logdir', 'mine')
  assert done[-2] == 'run tensorboard.main --logdir mine'


@pytest.mark.parametrize(
  'command',
  [
    'calibrate',
    'check_data',
    'compare',
    'embed',
    'evaluate',
    'export_index',
    'export_model',
    'plan',
    'search',
    'selftest',
  ],
)
def test_other_commands_get_their_flags(machine, tmp_path, command):
  machine.add_python('python3', '3.11')
  *_, done = machine.launch(command, '--data=my photos', cwd=tmp_path)
  assert machine.installed() == [['requirements-cpu.txt']]
  assert done[-2] == f'run retrieval_jax.{command} --data=my photos'
  assert done[-1].startswith(f'in {tmp_path} ')


def test_help_needs_nothing(machine):
  process = machine.start('help')
  output, errors = process.communicate(timeout=60)
  assert (process.returncode, errors) == (0, '')
  assert './launch.sh test' in output
