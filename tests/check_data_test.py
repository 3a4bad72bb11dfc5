"""The command that checks data: its faults, its flags, its exit status."""

import csv
import pathlib

import cv2
import numpy as np
import pytest

from retrieval_jax import check_data
from retrieval_jax.data.checks import findings

ROOT = pathlib.Path(__file__).parents[1]
COLUMNS = ('path', 'label', 'split', 'is_query', 'is_gallery', 'sequence')
BOX_COLUMNS = ('x_1', 'y_1', 'x_2', 'y_2')


def make_jpeg(seed, height=96, width=128, quality=90):
  generator = np.random.default_rng(seed)
  coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
  smooth = cv2.resize(coarse, (128, 96), interpolation=cv2.INTER_CUBIC)
  noisy = np.clip(smooth + generator.normal(0, 5, smooth.shape), 0, 255)
  picture = cv2.resize(noisy.astype(np.uint8), (width, height))
  options = [cv2.IMWRITE_JPEG_QUALITY, quality]
  return cv2.imencode('.jpg', picture, options)[1].tobytes()


@pytest.fixture
def photos(tmp_path):
  """A folder of splits: 3 classes of 3 to train on, 3 others to test on."""
  for i in range(18):
    split, name = ('train', 'test')[i // 9], 'abcdef'[i // 3]
    path = tmp_path / 'photos' / split / name / f'{i:02}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_jpeg(i))
  return tmp_path / 'photos'


@pytest.fixture
def table(photos):
  """Rows of a table of the same pictures, {column: text}, to be changed."""
  rows = []
  for path in sorted(photos.rglob('*.jpg')):
    split, name = path.parts[-3:-1]
    is_test = str(split == 'test').lower()
    values = (path.relative_to(photos), name, split, is_test, is_test, '')
    rows.append(
      dict(zip(COLUMNS, values, strict=True)) | dict.fromkeys(BOX_COLUMNS, '')
    )
  return sorted(rows, key=lambda row: row['path'].name)


def write_table(rows, path):
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, COLUMNS + BOX_COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
  return path


def check(capsys, *argv):
  """Returns the exit status, the finding names with counts, and the output."""
  status = check_data.main([str(argument) for argument in argv])
  output, error = capsys.readouterr()
  found = {}
  for line in output.splitlines():
    name, _, rest = line.strip().partition(' ')
    if line.startswith('  ') and name in findings.KINDS:
      found[name] = int(rest.split()[0].replace(',', ''))
  return status, found, output, error


def test_a_clean_folder(photos, capsys):
  status, found, output, error = check(capsys, f'--data={photos}')
  assert (status, found) == (0, {})
  assert 'nothing found' in output
  assert '9 of 3 classes, each against the others' in output
  assert not error


def leak(photos):
  (photos / 'test/d/09.jpg').write_bytes(make_jpeg(0))
  return {'train_test_leak': 1, 'two_labels': 1}


def near_leak(photos):
  (photos / 'test/d/09.jpg').write_bytes(make_jpeg(0, 80, 104, 60))
  return {'near_train_test_leak': 1}


def two_labels(photos):
  (photos / 'train/b/copy.jpg').write_bytes(make_jpeg(1))
  return {'two_labels': 1}


def unreadable(photos):
  (photos / 'train/a/00.jpg').write_bytes(b'nothing')
  whole = (photos / 'test/e/12.jpg').read_bytes()
  (photos / 'test/e/12.jpg').write_bytes(whole[: len(whole) // 2])
  return {'unreadable_image': 2}


@pytest.mark.parametrize('plant', [leak, near_leak, two_labels, unreadable])
def test_an_error_in_a_folder_is_status_1(plant, photos, capsys):
  expected = plant(photos)
  status, found, output, _ = check(capsys, f'--data={photos}')
  assert (status, found) == (1, expected)


def test_warnings_are_status_0(photos, capsys):
  (photos / 'train/a/copy.jpg').write_bytes(make_jpeg(1))
  (photos / 'train/a/black.png').write_bytes(
    cv2.imencode('.png', np.zeros((50, 50), np.uint8))[1].tobytes()
  )
  status, found, _, _ = check(capsys, f'--data={photos}')
  assert (status, found) == (0, {'duplicate': 1, 'blank_image': 1})


def test_a_clean_table(table, photos, tmp_path, capsys):
  file = write_table(table, tmp_path / 'items.csv')
  status, found, _, _ = check(capsys, f'--data={file}', f'--root={photos}')
  assert (status, found) == (0, {})


def sequence(rows):
  rows[0]['sequence'] = rows[9]['sequence'] = 's1'
  return {'sequence_leak': 1}


def box_outside(rows):
  rows[4] |= dict(zip(BOX_COLUMNS, (10, 10, 300, 50), strict=True))
  return {'box_outside': 1}


def unmatched(rows):
  for row in rows[9:]:
    row['is_query'] = str(row['path'].name in ('09.jpg', '12.jpg', '15.jpg'))
    row['is_gallery'] = str(row['is_query'] == 'False')
  rows[10]['is_gallery'] = rows[11]['is_gallery'] = 'False'
  return {'query_without_match': 1, 'unused_row': 2}


@pytest.mark.parametrize('plant', [sequence, box_outside, unmatched])
def test_an_error_in_a_table_is_status_1(
  plant, table, photos, tmp_path, capsys
):
  expected = plant(table)
  file = write_table(table, tmp_path / 'items.csv')
  status, found, _, _ = check(capsys, f'--data={file}', f'--root={photos}')
  assert (status, found) == (1, expected)


def test_the_data_of_a_config(photos, capsys):
  argv = (
    f'--config={ROOT}/configs/circle.py',
    '--config.data.name=folder',
    f'--config.data.dir={photos}',
  )
  assert check(capsys, *argv)[:2] == (0, {})
  leak(photos)
  assert check(capsys, *argv)[0] == 1


def test_near_duplicates_off_and_some_images(photos, capsys):
  near_leak(photos)
  status, _, output, _ = check(
    capsys, f'--data={photos}', '--near_duplicates=off', '--max_images=9'
  )
  assert status == 0
  assert '9 of 18 pictures were read' in output


def test_a_page_is_written_and_never_over_another_file(
  photos, tmp_path, capsys
):
  page = tmp_path / 'page.html'
  argv = (f'--data={photos}', f'--html={page}')
  assert check(capsys, *argv)[0] == 0
  assert page.read_text().startswith('<!doctype html>')
  page.write_text('mine')
  status, _, _, error = check(capsys, *argv)
  assert status == 2
  assert '--overwrite' in error
  assert page.read_text() == 'mine'
  assert check(capsys, *argv, '--overwrite')[0] == 0
  assert 'mine' not in page.read_text()
  assert not list(tmp_path.glob('*.tmp'))


@pytest.mark.parametrize(
  'argv, words',
  [
    ([], 'required'),
    (['--data=no_such_place'], "'no_such_place', which does not exist"),
    (['--data=.', '--config=configs/circle.py'], 'not allowed with'),
    (['--data=.', '--root=.'], "--root is '.'"),
    (['--data=.', '--config.data.dir=x'], 'without --config'),
    (['--data=.', '--near_duplicates=9'], "0 to 8 and 'off'"),
    (['--data=.', '--near_duplicates=-1'], "0 to 8 and 'off'"),
    (['--data=.', '--max_images=0'], 'at least 1'),
    (['--data=.', '--num_threads=two'], 'at least 0'),
    (['--data=.', '--htlm=x.html'], "did you mean '--html'"),
    (['--data=.', '--html=no/such/page.html'], "no folder 'no/such'"),
    (['--data=.', '--html=.'], 'a folder; allowed is a file'),
    (['--config=no_such.py'], 'no_such.py'),
    (
      ['--config=configs/circle.py', '--config.data.name=mixture'],
      'one data set at a time',
    ),
  ],
)
def test_a_mistake_is_one_line_and_status_2(argv, words, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  status, _, output, error = check(capsys, *argv)
  assert status == 2
  assert words in error
  assert error.count('\n') == 1
  assert not output


def test_help(capsys):
  with pytest.raises(SystemExit) as status:
    check_data.main(['--help'])
  assert status.value.code == 0
  assert '--data=photos --html=photos.html' in capsys.readouterr().out
