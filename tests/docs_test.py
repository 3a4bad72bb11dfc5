"""The pages of the losses say what the code says, and links in docs/ lead on.

`python docs/losses/generate.py` writes the pages anew.
"""

import importlib.util
import pathlib
import re
import shlex
import sys

import pytest

from retrieval_jax import losses, main
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import config_checks

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / 'docs' / 'losses'
PAGES = sorted((ROOT / 'docs').glob('**/*.md'))
ROWS = [
  *(('losses', name) for name in losses.LOSSES),
  *(('mining', name) for name in losses.MINERS),
  *(('regularizers', name) for name in losses.REGULARIZERS),
]


def load_generator():
  spec = importlib.util.spec_from_file_location(
    'docs_losses_generate', FOLDER / 'generate.py'
  )
  module = importlib.util.module_from_spec(spec)
  # Where dataclasses look for the types of their fields.
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  return module


GENERATOR = load_generator()
GENERATED = GENERATOR.pages()
COMMANDS = sorted(
  {
    command
    for text in GENERATED.values()
    for command in re.findall(r'`(--config=configs/[^`]*)`', text)
    if 'NAME' not in command
  }
)


def headings(path):
  # What is between fences is no heading.
  text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.M | re.S)
  found = re.findall(r'^#+ (.*)$', text, flags=re.M)
  # Of punctuation an anchor keeps hyphens and underscores.
  return [
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in found
  ]


@pytest.mark.parametrize('name', sorted(GENERATED))
def test_pages_are_what_the_generator_makes(name):
  assert (FOLDER / name).read_text() == GENERATED[name], (
    'run: PYTHONPATH=. python docs/losses/generate.py'
  )


@pytest.mark.parametrize('kind,name', ROWS)
def test_every_row_of_the_registries_has_a_section(kind, name):
  pages = (
    [kind]
    if kind != 'losses'
    else [
      page
      for page in GENERATOR.FAMILIES
      if page not in ('mining', 'regularizers')
    ]
  )
  found = [p for p in pages if name in headings(FOLDER / f'{p}.md')]
  assert len(found) == 1, found


@pytest.mark.parametrize('kind,name', ROWS)
def test_docstrings_say_what_the_pages_need(kind, name):
  rows = {
    'losses': losses.LOSSES,
    'mining': losses.MINERS,
    'regularizers': losses.REGULARIZERS,
  }[kind]
  doc = GENERATOR.Docstring.of(rows[name].function)
  assert any(part.startswith('```') for part in doc.body), 'no formula'
  assert {'Use it', 'Cost'} <= set(doc.notes)
  for hyperparameter in rows[name].hyperparameters:
    assert doc.argument(hyperparameter), hyperparameter
  if kind != 'regularizers':
    assert 'Defaults' in doc.notes
    assert 'References' in doc.sections


@pytest.mark.parametrize(
  'page', PAGES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_and_sections_that_are_linked_exist(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
    path, _, anchor = target.partition('#')
    if path.startswith('http'):
      continue
    file = (page.parent / path) if path else page
    assert file.exists(), target
    if anchor:
      assert anchor in headings(file), target


def test_commands_are_valid(monkeypatch):
  monkeypatch.chdir(ROOT)
  assert len(COMMANDS) >= len(ROWS)
  for command in COMMANDS:
    flags, overrides = main.parse_flags(shlex.split(command))
    config = config_lib.load(flags.config)
    for key, text in overrides:
      config_lib.override(config, key, text)
    config_checks.validate(config)
