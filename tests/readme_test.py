"""What the README and docs/index.md tell people to run, runs."""

import importlib
import os
import pathlib
import re
import shlex

import pytest

from retrieval_jax import compare, main, plan, selftest
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import config_checks

pytestmark = pytest.mark.usefixtures('no_drawings')

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text()
SNIPPETS = re.findall(r'```python\n(.*?)```', TEXT, flags=re.DOTALL)
# A command may go on in the next line.
COMMANDS = sorted(
  set(
    re.findall(
      r'(?:(?:plan|selftest) )?--config=configs/[^`\n#]*',
      TEXT.replace('\\\n', ' '),
    )
  )
)
# Run in their order; what is quoted in the text is not among them.
INDEX_COMMANDS = (
  r'^    python -m (retrieval_jax\.\w*(?:embed|search|calibrate|index)) (.*)'
)


@pytest.fixture(scope='module')
def searched_folder(example_folder, tmp_path_factory):
  """Returns what makes the folder that the commands of a page leave behind."""
  made = {}

  def make(file):
    if file not in made:
      made[file] = folder = tmp_path_factory.mktemp('searched')
      for name in os.listdir(example_folder):
        os.symlink(example_folder / name, folder / name)
      text = (ROOT / file).read_text().replace('\\\n', ' ')
      with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for module, argv in re.findall(INDEX_COMMANDS, text, flags=re.M):
          command = importlib.import_module(module)
          assert command.main(shlex.split(argv)) == 0, argv
    return made[file]

  return make


def test_index_commands(searched_folder):
  made = {'found.html', 'photos.index', 'photos.parquet'}
  for file in ('README.md', 'docs/index.md'):
    assert made <= set(os.listdir(searched_folder(file)))


def test_python_of_the_index_page(searched_folder, monkeypatch, capsys):
  monkeypatch.chdir(searched_folder('docs/index.md'))
  text = (ROOT / 'docs/index.md').read_text()
  (snippet,) = re.findall(r'```python\n(.*?)```', text, flags=re.DOTALL)
  exec(compile(snippet, 'index.md', 'exec'), {})
  # b.png was taken out again.
  assert 'photos/a.png' in capsys.readouterr().out


@pytest.mark.parametrize('snippet', SNIPPETS)
def test_python(snippet, searched_folder, monkeypatch):
  monkeypatch.chdir(searched_folder('README.md'))
  names = {}
  exec(compile(snippet, 'README.md', 'exec'), names)
  if 'indices' in names:
    assert names['indices'].shape == (1, 2)


@pytest.mark.parametrize('command', COMMANDS)
def test_flags_are_valid(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  name = command.partition(' ')[0]
  module = {'plan': plan, 'selftest': selftest}.get(name, main)
  if module is not main:
    command = command.removeprefix(f'{name} ')
  head, braces, rest = command.partition('{')
  names, _, tail = rest.partition('}')
  for name in names.split(',') if braces else ['']:
    flags, overrides = module.parse_flags((head + name + tail).split())
    config = config_lib.load(flags.config)
    for key, text in overrides:
      config_lib.override(config, key, text)
    config_checks.validate(config)


def test_flags_of_compare_are_valid():
  commands = re.findall(r'launch.sh compare (.*)', TEXT)
  assert commands
  for command in commands:
    compare.parse_flags(command.split())


def test_files_and_sections_that_are_linked_exist():
  for target in re.findall(r'\]\(([^)]+)\)', TEXT):
    path, _, anchor = target.partition('#')
    if path.startswith('http'):
      continue
    file = ROOT / path if path else ROOT / 'README.md'
    assert file.exists(), target
    if anchor:
      headings = re.findall(r'^#+ (.*)$', file.read_text(), flags=re.M)
      assert anchor in [h.lower().replace(' ', '-') for h in headings], target
