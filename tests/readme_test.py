"""What the README tells people to run, runs."""

import pathlib
import re

import pytest

from retrieval_jax import main, selftest
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import config_checks

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text()
SNIPPETS = re.findall(r'```python\n(.*?)```', TEXT, flags=re.DOTALL)
# A command may go on in the next line.
COMMANDS = sorted(
  set(
    re.findall(
      r'(?:selftest )?--config=configs/[^`\n#]*', TEXT.replace('\\\n', ' ')
    )
  )
)


@pytest.mark.parametrize('snippet', SNIPPETS)
def test_python(snippet, example_folder, monkeypatch):
  monkeypatch.chdir(example_folder)
  names = {}
  exec(compile(snippet, 'README.md', 'exec'), names)
  if 'indices' in names:
    assert names['indices'].shape == (1, 2)


@pytest.mark.parametrize('command', COMMANDS)
def test_flags_are_valid(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  module = selftest if command.startswith('selftest ') else main
  command = command.removeprefix('selftest ')
  head, braces, rest = command.partition('{')
  names, _, tail = rest.partition('}')
  for name in names.split(',') if braces else ['']:
    flags, overrides = module.parse_flags((head + name + tail).split())
    config = config_lib.load(flags.config)
    for key, text in overrides:
      config_lib.override(config, key, text)
    config_checks.validate(config)


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
