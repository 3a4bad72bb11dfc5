"""From a trained run to answers: embed, search, calibrate, export_index."""

import itertools
import json
import os
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest

from retrieval_jax import (
  calibrate,
  compare,
  embed,
  evaluate,
  export_index,
  inference,
  search,
)
from retrieval_jax.neighbors import Index
from retrieval_jax.training import checkpoint, indexing, results
from retrieval_jax.training import config as config_lib
from retrieval_jax.training.experiment import make_experiment

pytestmark = pytest.mark.usefixtures('no_drawings')

ROOT = pathlib.Path(__file__).parents[1]
RUN = '--workdir=runs/circle'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with a run, 30 digits by class, and an index of them.

  The weights of the run are random ones: what an index is does not depend on
  how good they are, and nothing has to be trained.
  """
  folder = tmp_path_factory.mktemp('place')
  config = config_lib.load(str(ROOT / 'configs/circle.py'))
  experiment = make_experiment(config)
  workdir = str(folder / 'runs/circle')
  checkpoint.open_workdir(workdir)
  results.describe_run(workdir, config, experiment.dataset)
  with checkpoint.Checkpoints(workdir) as checkpoints:
    checkpoints.save(experiment.stages[0].initial_state())
  query = experiment.dataset.tests['test'].query
  rows = np.linspace(0, len(query) - 1, 30).astype(int)
  for row, image in zip(rows, query.images_at(rows), strict=True):
    path = folder / 'digits' / str(query.labels[row]) / f'{row:03}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(image[..., 0]).save(path)
  (folder / 'bad.png').write_bytes(b'bad')
  arguments = [
    f'--workdir={folder}/runs/circle',
    f'--images={folder}/digits',
    f'--output={folder}/digits.index',
  ]
  assert embed.main(arguments) == 0
  return folder


@pytest.fixture
def call(place, tmp_path, monkeypatch, capsys):
  """Returns what calls a command beside a copy of the index."""
  for name in ('runs', 'bad.png'):
    os.symlink(place / name, tmp_path / name)
  shutil.copytree(place / 'digits', tmp_path / 'digits')
  shutil.copytree(place / 'digits.index', tmp_path / 'digits.index')
  monkeypatch.chdir(tmp_path)

  def call(command, *argv):
    status = command.main(argv)
    return status, *capsys.readouterr()

  return call


@pytest.fixture
def query(place):
  """The path of an image that is in the index."""
  return str(sorted((place / 'digits').rglob('*.png'))[7])


def search_json(call, *argv):
  status, output, errors = call(search, '--index=digits.index', '--json', *argv)
  assert status == 0, errors
  return [json.loads(line) for line in output.splitlines()]


def test_an_image_finds_itself_first(call, query):
  (answer,) = search_json(call, f'--query={query}', '--k=3')
  assert (answer['query'], answer['is_match']) == (query, True)
  assert answer['threshold'] is None
  best, *others = answer['nearest']
  assert (best['rank'], best['path']) == (1, query)
  assert best['similarity'] == pytest.approx(1, abs=1e-5)
  assert [match['rank'] for match in others] == [2, 3]
  assert (
    best['similarity'] >= others[0]['similarity'] >= others[1]['similarity']
  )


def test_the_table_names_queries_and_images(call, query):
  status, output, _ = call(
    search, '--index=digits.index', f'--query={query}', query
  )
  lines = output.splitlines()
  assert (status, len(lines)) == (0, 22)  # Ten neighbours each.
  assert lines[0] == lines[11] == query
  assert lines[1].split() == ['1', '1.0000', query]


def test_the_page_has_the_pictures(call, query):
  argv = ['--index=digits.index', f'--query={query}', '--html=found.html']
  assert call(search, *argv)[0] == 0
  with open('found.html', encoding='utf-8') as file:
    assert file.read().count('data:image/png') == 11
  status, _, errors = call(search, *argv)
  assert (status, '--overwrite' in errors) == (2, True)
  assert call(search, *argv, '--overwrite')[0] == 0


def test_queries_that_cannot_be_read_are_skipped(call, query, caplog):
  answers = search_json(call, '--query', 'bad.png', query, 'gone.png')
  assert [answer['query'] for answer in answers] == [query]
  assert [r.getMessage().split(': ')[1] for r in caplog.records] == [
    'it is damaged, or not an image of a known format (BMP, GIF, JPEG, '
    'JPEG2000, PNG, PPM, TIFF, WEBP); skipped',
    'No such file or directory; skipped',
  ]
  status, output, errors = call(
    search, '--index=digits.index', '--query=bad.png'
  )
  assert (status, output) == (2, '')
  assert 'names 1 images, of which none can be read' in errors


def test_a_pipe_as_a_query_is_refused_at_once(call, caplog):
  os.mkfifo('pipe.png')
  status, _, errors = call(
    search, '--index=digits.index', '--query=pipe.png', '--k=1'
  )
  assert (status, 'of which none can be read' in errors) == (2, True)
  (line,) = [record.getMessage() for record in caplog.records]
  assert line.endswith('pipe.png: It is a pipe, not a file; skipped')


def test_copies_are_named_and_removed_from_the_list(call):
  shutil.copy(next(pathlib.Path('digits').rglob('*.png')), 'digits/copy.png')
  argv = [RUN, '--images=digits', '--output=new.index']
  status, output, errors = call(embed, *argv)
  assert status == 0, errors
  assert output == (
    'new.index: 31 images; 31 embedded, 1 the same as others (see '
    'duplicates.csv in it)\n'
  )
  assert call(embed, '--remove=digits/copy.png', '--output=new.index')[0] == 0
  assert not os.path.exists('new.index/duplicates.csv')


def test_below_the_threshold_there_is_no_match(call):
  blank = PIL.Image.new('L', (28, 28), 255)
  blank.save('blank.png')
  _, output, _ = call(
    *(search, '--index=digits.index', '--query=blank.png', '--threshold=0.9999')
  )
  assert output.startswith('blank.png: no match (the best has 0.')
  assert 'below the threshold 0.9999)' in output
  (answer,) = search_json(call, '--query=blank.png', '--threshold=0.9999')
  assert not answer['is_match'] and answer['nearest'][0]['similarity'] < 0.9999


def test_what_is_below_the_threshold_is_no_match(call, query):
  (answer,) = search_json(call, f'--query={query}', '--k=4')
  similarities = [near['similarity'] for near in answer['nearest']]
  threshold = (similarities[1] + similarities[2]) / 2
  argv = f'--query={query}', '--k=4', f'--threshold={threshold}'
  (answer,) = search_json(call, *argv)
  matches = [near['is_match'] for near in answer['nearest']]
  assert answer['is_match'] and matches == [True, True, False, False]
  _, output, _ = call(search, '--index=digits.index', *argv)
  assert len(output.splitlines()) == 1 + 2
  assert call(search, '--index=digits.index', '--html=page.html', *argv)[0] == 0
  page = pathlib.Path('page.html').read_text()
  assert '<b>2</b> &nbsp;' in page and '<b>3</b> &nbsp;' not in page


def test_images_that_calibrate_cannot_read_are_named(call, caplog):
  shutil.copy('bad.png', 'digits/1/bad.png')
  argv = calibrate, '--index=digits.index', '--false_positive_rate=0.1'
  status, output, _ = call(*argv, '--data=digits')
  assert status == 0 and '30 queries' in output
  assert 'bad.png' in caplog.text and 'skipped' in caplog.text
  for i in range(2):
    os.makedirs(f'broken/{i}')
    for name in 'ab':
      shutil.copy('bad.png', f'broken/{i}/{name}.png')
  status, _, errors = call(*argv, '--data=broken')
  assert status == 2 and errors.count('\n') == 1
  assert 'none of the 4 images to calibrate on can be read' in errors


def test_control_c_ends_in_one_line(call, monkeypatch):
  def stop(*arguments, **options):
    raise KeyboardInterrupt

  monkeypatch.setattr(search, 'run', stop)
  assert call(search)[::2] == (130, 'retrieval_jax: stopped\n')


def test_control_c_says_what_embed_keeps(call, monkeypatch):
  parts = indexing.embed_source

  def stop_after(count):
    def stopping(*arguments):
      yield from itertools.islice(parts(*arguments), count)
      raise KeyboardInterrupt

    monkeypatch.setattr(indexing, 'embed_source', stopping)

  argv = embed, RUN, '--images=digits', '--output=new.index', '--batch_size=8'
  nothing = 'retrieval_jax: stopped; nothing new was embedded, new.index is '
  goes_on = (
    'retrieval_jax: stopped; new.index has what was embedded so far; the same '
    'command{} goes on from there\n'
  )
  stop_after(0)
  assert call(*argv)[::2] == (130, nothing + 'as it was\n')
  assert not os.path.exists('new.index')
  stop_after(1)
  assert call(*argv)[::2] == (130, goes_on.format(''))
  assert len(Index.open('new.index')) == 8
  stop_after(0)
  for flags in ([], ['--overwrite']):
    assert call(*argv, *flags)[::2] == (130, nothing + 'as it was\n')
    assert len(Index.open('new.index')) == 8
  stop_after(1)
  status, _, errors = call(*argv, '--overwrite')
  assert (status, errors) == (130, goes_on.format(' without --overwrite'))
  assert len(Index.open('new.index')) == 8
  monkeypatch.setattr(indexing, 'embed_source', parts)
  status, output, _ = call(*argv)
  assert status == 0 and '22 embedded, 8 there before' in output


def test_a_threshold_is_chosen_kept_and_used(call, query):
  status, output, errors = call(
    *(calibrate, '--index=digits.index', '--data=digits'),
    '--false_positive_rate=0',
  )
  assert status == 0, errors
  assert 'no match below' in output and '30 queries' in output
  index = Index.open('digits.index')
  about = index.manifest.threshold
  assert about['false_positive_rate'] == 0
  assert about['wanted'] == 'for a false positive rate of 0 on digits'
  # What is chosen: above the best image of any other class, of each query.
  rows, labels = index.embeddings, [p.split('/')[-2] for p in index.paths]
  other = max(
    float(rows[i] @ rows[j])
    for i in range(30)
    for j in range(30)
    if labels[i] != labels[j]
  )
  assert about['value'] == pytest.approx(other, abs=1e-5)
  (answer,) = search_json(call, f'--query={query}')
  assert (answer['threshold'], answer['is_match']) == (about['value'], True)
  (answer,) = search_json(call, f'--query={query}', '--threshold=off')
  assert answer['threshold'] is None
  argv = [RUN, '--images=digits/1', '--output=digits.index', '--add']
  assert call(embed, *argv)[0] == 0
  assert Index.open('digits.index').threshold == about['value']


def test_a_run_without_validation_set_says_how_else(call):
  status, _, errors = call(calibrate, '--index=digits.index', '--precision=0.9')
  assert status == 2
  assert '0 validation sets' in errors and '--data' in errors


def test_images_are_added_and_removed(call):
  argv = ['--output=digits.index']
  status, output, _ = call(
    embed, *argv, '--remove', str(Index.open('digits.index').paths[0])
  )
  assert (status, output) == (0, 'digits.index: 29 images; 1 removed\n')
  PIL.Image.new('L', (28, 28), 99).save('new.png')
  status, output, _ = call(embed, RUN, '--images=new.png', *argv)
  assert status == 2
  status, output, _ = call(embed, RUN, '--images=new.png', *argv, '--add')
  assert (status, output) == (0, 'digits.index: 30 images; 1 embedded\n')
  (answer,) = search_json(call, '--query=new.png', '--k=1')
  assert answer['nearest'][0]['path'] == os.path.abspath('new.png')


@pytest.mark.parametrize(
  'command, argv',
  [
    (embed, [RUN, '--images=', '--output=new']),
    (embed, [RUN, '--images=digits', '--output=']),
    (embed, ['--remove', '', '--output=digits.index']),
    (embed, ['--workdir=', '--images=digits', '--output=new']),
    (search, ['--index=', '--query=a.png']),
    (search, ['--index=digits.index', '--query', 'a.png', '']),
    (compare, ['runs/circle', '']),
    (evaluate, ['--workdir=', '--config.data.name=mnist']),
  ],
)
def test_an_empty_text_is_refused_at_once(call, command, argv, monkeypatch):
  monkeypatch.setattr(inference, 'RetrievalModel', None)
  status, output, errors = call(command, *argv)
  assert (status, output, os.path.exists('new')) == (2, '', False)
  assert "'' is not allowed" in errors and errors.count('\n') == 1


def test_a_name_with_a_newline_takes_one_line(call):
  for command, argv in (
    (embed, ['--workdir=no\npe', '--images=digits', '--output=new.index']),
    (embed, [RUN, '--images=no\npe', '--output=new.index']),
    (evaluate, ['--workdir=no\npe', '--config.data.name=mnist']),
    (search, ['--index=no\npe', '--query=a.png']),
    (export_index, ['--index=digits.index', '--output=no/p\ne.npz']),
  ):
    status, output, errors = call(command, *argv)
    assert (status, output, errors.count('\n')) == (2, '', 1)
    assert '\\n' in errors
  status, output, _ = call(embed, RUN, '--images=digits', '--output=pi\ncs')
  assert (status, output) == (0, 'pi\\ncs: 30 images; 30 embedded\n')
  image = str(Index.open('pi\ncs').paths[0])
  status, output, _ = call(embed, f'--remove={image}', '--output=pi\ncs')
  assert (status, output) == (0, 'pi\\ncs: 29 images; 1 removed\n')
  argv = ['--index=pi\ncs', '--output=a\nb.npz']
  assert call(export_index, *argv)[:2] == (0, 'a\\nb.npz: 29 images\n')


def test_another_model_is_refused(call, query):
  shutil.copytree(os.path.realpath('runs/circle'), 'other')
  with open('other/dataset.json') as file:
    info = json.load(file)
  info['preprocessing']['resize_size'] = 40
  with open('other/dataset.json', 'w') as file:
    json.dump(info, file)
  for command, argv in (
    (search, ['--index=digits.index', f'--query={query}']),
    (calibrate, ['--index=digits.index', '--precision=1', '--data=digits']),
    (embed, ['--output=digits.index', '--images=bad.png', '--add']),
  ):
    status, _, errors = call(command, *argv, '--workdir=other')
    assert status == 2
    assert 'another network or preprocessing (config_sha256' in errors


def test_a_copy_of_the_run_is_the_same_model(call, query):
  shutil.copytree(os.path.realpath('runs/circle'), 'moved')
  assert search_json(call, f'--query={query}', '--workdir=moved')


@pytest.mark.parametrize('ending', ['.npz', '.parquet'])
def test_export(call, ending):
  argv = ['--index=digits.index', f'--output=out{ending}']
  assert call(export_index, *argv)[:2] == (0, f'out{ending}: 30 images\n')
  assert call(export_index, *argv)[0] == 2
  assert call(export_index, *argv, '--overwrite')[0] == 0


@pytest.mark.parametrize(
  'command, argv, message',
  [
    (embed, ['--images=digits', '--output=new'], 'without --workdir'),
    (embed, [RUN, '--images=gone', '--output=new'], 'does not exist'),
    (embed, [RUN, '--images=bad.png', '--output=new'], 'none can be read'),
    (embed, ['--workdir=gone', '--images=digits', '--output=new'], 'gone'),
    (embed, [RUN, '--images=digits', '--output=digits'], 'is not an index'),
    (embed, [RUN, '--images=digits', '--output=new', '--step=9'], 'step 9'),
    (embed, ['--remove=gone', '--output=digits.index'], 'has no image of it'),
    (embed, ['--remove=digits', '--output=gone'], 'does not exist'),
    (embed, ['--output=new'], '--images'),
    (embed, [RUN, '--images=digits', '--outptu=x'], 'output'),
    (search, ['--index=gone', '--query=bad.png'], 'does not exist'),
    (search, ['--index=digits', '--query=bad.png'], 'is not an index'),
    (search, ['--index=digits.index', '--query=x', '--k=0'], 'at least 1'),
    (
      search,
      ['--index=digits.index', '--query=digits/QUERY', '--k=31'],
      'k is 31; allowed is an int from 1 to 30',
    ),
    (
      search,
      ['--index=digits.index', '--query=x', '--threshold=2'],
      'numbers from -1 to 1',
    ),
    (
      search,
      ['--index=digits.index', '--query=x', '--workdir=gone'],
      "looked for in 'gone', which is not there",
    ),
    (
      search,
      ['--index=digits.index', '--query=x', '--html=gone/x.html'],
      'no folder',
    ),
    (calibrate, ['--index=digits.index'], 'precision'),
    (
      calibrate,
      ['--index=digits.index', '--precision=2', '--data=digits'],
      'precision is 2',
    ),
    (
      calibrate,
      ['--index=digits.index', '--precision=1', '--data=gone.csv'],
      'does not exist',
    ),
    (export_index, ['--index=digits.index', '--output=x.csv'], '.parquet'),
    (export_index, ['--index=gone', '--output=x.npz'], 'does not exist'),
  ],
)
def test_a_mistake_is_one_line_and_status_2(
  call, query, command, argv, message
):
  argv = [arg.replace('digits/QUERY', query) for arg in argv]
  before = sorted(os.listdir())
  status, output, errors = call(command, *argv)
  assert (status, output) == (2, '')
  assert message in errors.splitlines()[-1]
  assert errors.splitlines()[-1].startswith('retrieval_jax: ')
  assert sorted(os.listdir()) == before


def test_a_folder_without_images_is_one_line_and_status_2(call):
  os.mkdir('empty')
  with open('empty/notes.txt', 'w') as file:
    file.write('no image')
  status, output, errors = call(
    embed, RUN, '--images=empty', '--output=empty.index'
  )
  assert (status, output) == (2, '')
  assert "empty', where there are no images" in errors.splitlines()[-1]
  assert not os.path.exists('empty.index')


@pytest.mark.parametrize('command', [search, embed, export_index, calibrate])
def test_a_truncated_index_is_one_line_and_status_2(call, query, command):
  os.truncate('digits.index/embeddings-0.f32', 100)
  before = sorted(os.listdir('digits.index'))
  argv = {
    search: ['--index=digits.index', f'--query={query}'],
    embed: [RUN, '--images=digits', '--output=digits.index', '--add'],
    export_index: ['--index=digits.index', '--output=out.npz'],
    calibrate: ['--index=digits.index', '--precision=1', '--data=digits'],
  }[command]
  status, output, errors = call(command, *argv)
  assert (status, output) == (2, '')
  assert 'embeddings-0.f32 has 100 bytes' in errors.splitlines()[-1]
  assert sorted(os.listdir('digits.index')) == before
  assert not os.path.exists('out.npz')


def test_an_unfinished_index_is_searched_with_a_warning(call, query, caplog):
  path = 'digits.index/manifest.json'
  with open(path) as file:
    manifest = json.load(file)
  with open(path, 'w') as file:
    json.dump(manifest | {'complete': False}, file)
  assert search_json(call, f'--query={query}')
  assert 'digits.index is not complete' in caplog.text
