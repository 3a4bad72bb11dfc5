"""Images into an index: each once, whatever they are, whatever happens."""

import io
import logging
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from retrieval_jax import data
from retrieval_jax.core import files
from retrieval_jax.core.errors import InputError
from retrieval_jax.data.formats import folders, image_lists
from retrieval_jax.neighbors import Index, remove_images
from retrieval_jax.training import index_lists, indexing


class FakeModel:
  """Embeds by fixed random weights, and counts what it sees."""

  def __init__(self, name='a', die_at=None):
    self.preprocessing = data.Preprocessing((8, 8, 3), resize_size=8)
    self.embedding_dim = 4
    self.description = {
      'run': name,
      'workdir': f'/runs/{name}',
      'step': 1,
      'config_sha256': 'same',
      'weights_sha256': name,
      'preprocessing': self.preprocessing.to_dict(),
    }
    self.sizes, self._die_at = [], die_at
    self._weights = np.random.default_rng(0).normal(size=(192, 4))

  def embed_prepared(self, images):
    self.sizes.append(len(images))
    if len(self.sizes) == self._die_at:
      os.kill(os.getpid(), signal.SIGKILL)
    rows = (images.reshape(len(images), -1) - 127.0) @ self._weights
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def picture(seed, size=(12, 10)):
  shape = (size[1], size[0], 3)
  noise = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  return PIL.Image.fromarray(noise)


def encoded(image, kind, **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


@pytest.fixture
def photos(tmp_path):
  folder = tmp_path / 'photos'
  for i in range(11):
    path = folder / 'abc'[i % 3] / f'{i:02}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(i).save(path)
  return folder


def build(model, images, output, *, add=False, overwrite=False, **options):
  images = image_lists.list_images(str(images))
  output = indexing.resolve_output(
    str(output), images.source, add=add, overwrite=overwrite
  )
  return indexing.build_index(
    model, images, output, batch_size=2, num_threads=2, **options
  )


def embed_and_die(images, output):
  """What the child process of the test of kills runs."""
  build(FakeModel(die_at=4), images, output, commit_seconds=0)


def names(output, root):
  return [os.path.relpath(path, root) for path in Index.open(output).paths]


def test_every_image_is_embedded_once_in_order(photos, tmp_path):
  model, told = FakeModel(), []
  summary = build(model, photos, tmp_path / 'index', progress=told.append)
  expected = sorted(str(p.relative_to(photos)) for p in photos.rglob('*.png'))
  index = Index.open(tmp_path / 'index')
  assert names(tmp_path / 'index', photos) == expected
  assert (summary.num_images, summary.num_added, sum(told)) == (11, 11, 11)
  assert index.manifest.complete and index.manifest.model == model.description
  assert model.sizes == [2] * 6  # The last batch is filled up.
  for path, row in zip(index.paths, index.embeddings, strict=True):
    seen = data.preprocessing.read_images(path, model.preprocessing)
    np.testing.assert_allclose(model.embed_prepared(seen)[0], row, atol=1e-6)


def test_the_same_again_embeds_what_is_new(photos, tmp_path):
  build(FakeModel(), photos, tmp_path / 'index')
  model = FakeModel()
  assert build(model, photos, tmp_path / 'index').num_present == 11
  assert not model.sizes
  picture(50).save(photos / 'b' / 'new.png')
  summary = build(model, photos, tmp_path / 'index')
  assert (summary.num_added, summary.num_images) == (1, 12)
  assert names(tmp_path / 'index', photos)[-1] == 'b/new.png'


def test_after_a_kill_the_rest_is_embedded(photos, tmp_path):
  child = (
    'import importlib.util as u, sys\n'
    's = u.spec_from_file_location("t", sys.argv[1])\n'
    'm = u.module_from_spec(s); s.loader.exec_module(m)\n'
    'm.embed_and_die(*sys.argv[2:])'
  )
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
    [sys.executable, '-c', child, __file__, photos, tmp_path / 'index'],
    env=os.environ | {'PYTHONPATH': str(root)},
    timeout=120,
  )
  assert done.returncode == -signal.SIGKILL
  killed = Index.open(tmp_path / 'index')
  assert 0 < len(killed) < 11 and not killed.manifest.complete
  model = FakeModel()
  summary = build(model, photos, tmp_path / 'index')
  assert (summary.num_present, summary.num_images) == (len(killed), 11)
  assert len(model.sizes) == -(-(11 - len(killed)) // 2)
  build(FakeModel(), photos, tmp_path / 'whole')
  one, two = (Index.open(tmp_path / name) for name in ('index', 'whole'))
  assert list(one.paths) == list(two.paths) and one.manifest.complete
  np.testing.assert_array_equal(one.embeddings, two.embeddings)


def test_what_was_embedded_before_an_exception_is_kept(photos, tmp_path):
  class Stopped(FakeModel):
    def embed_prepared(self, images):
      if len(self.sizes) == 4:
        raise KeyboardInterrupt
      return super().embed_prepared(images)

  with pytest.raises(KeyboardInterrupt):
    build(Stopped(), photos, tmp_path / 'index')
  index = Index.open(tmp_path / 'index')
  assert len(index) == 6 and not index.manifest.complete
  assert build(FakeModel(), photos, tmp_path / 'index').num_images == 11


def png_of_100_megapixels():
  return encoded(PIL.Image.new('1', (10_000, 10_000)), 'PNG')


GOOD = {
  'grey-16-bit.png': lambda: encoded(
    PIL.Image.fromarray(np.arange(120, dtype=np.uint16).reshape(10, 12) * 500),
    'PNG',
  ),
  'cmyk.jpg': lambda: encoded(picture(1).convert('CMYK'), 'JPEG'),
  'palette.png': lambda: encoded(
    picture(2).convert('P'), 'PNG', transparency=0
  ),
  'animated.webp': lambda: encoded(
    picture(3), 'WEBP', save_all=True, append_images=[picture(4)]
  ),
  'really-a-png.jpg': lambda: encoded(picture(5), 'PNG'),
  'really-a-jpeg.png': lambda: encoded(picture(6), 'JPEG'),
  'two\nlines.jpg': lambda: encoded(picture(7), 'JPEG'),
  'caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{SNOWMAN}.webp': lambda: encoded(
    picture(8), 'WEBP'
  ),
  os.fsdecode(b'latin-\xe9.jpg'): lambda: encoded(picture(9), 'JPEG'),
  'same.png': lambda: encoded(picture(10), 'PNG'),
  'same-again.png': lambda: encoded(picture(10), 'PNG'),
}
BAD = {
  'zero.jpg': (lambda: b'', 'it is empty'),
  'text.png': (lambda: b'hello', 'not an image'),
  'cut\n.png': (lambda: encoded(picture(11), 'PNG')[:200], 'truncated'),
  'cut.jpg': (lambda: encoded(picture(12, (90, 90)), 'JPEG')[:500], ''),
  'huge.png': (png_of_100_megapixels, 'pixels'),
}
# Not made of bytes.
ODD = {
  'link.png': (lambda path: path.symlink_to('nothing.png'), 'No such file'),
  'self.png': (lambda path: path.symlink_to('self.png'), 'symbolic links'),
  'pipe.jpg': (os.mkfifo, 'It is a pipe, not a file'),
}
REASONS = {name: reason for name, (_, reason) in (BAD | ODD).items()}


@pytest.fixture
def zoo(tmp_path):
  folder = tmp_path / 'zoo'
  folder.mkdir()
  for name, make in GOOD.items():
    (folder / name).write_bytes(make())
  for name, (make, _) in BAD.items():
    (folder / name).write_bytes(make())
  (folder / 'notes.txt').write_text('no image')
  (folder / '.hidden.png').write_bytes(b'')
  for name, (make, _) in ODD.items():
    make(folder / name)
  return folder


def test_images_of_every_kind(zoo, tmp_path, caplog):
  output = str(tmp_path / 'index')
  summary = build(FakeModel(), zoo, output)
  assert sorted(names(output, zoo)) == sorted(GOOD)
  skipped = dict(index_lists.read_skipped(output))
  assert sorted(skipped) == sorted(str(zoo / name) for name in REASONS)
  assert summary.skipped == list(skipped.items())
  for name, reason in REASONS.items():
    assert reason in skipped[str(zoo / name)]
    # A line each, though names have newlines.
  skips = [r for r in caplog.records if r.levelno == logging.WARNING]
  assert len(skips) == len(REASONS)
  assert not any('\n' in record.getMessage() for record in caplog.records)
  rows = dict(
    zip(names(output, zoo), Index.open(output).embeddings, strict=True)
  )
  np.testing.assert_array_equal(rows['same.png'], rows['same-again.png'])


def test_a_pipe_for_images_is_one_line_at_once(tmp_path):
  os.mkfifo(tmp_path / 'pipe.png')
  os.mkfifo(tmp_path / 'list.csv')
  with pytest.raises(InputError, match='of whose 1 images none can be read'):
    build(FakeModel(), tmp_path / 'pipe.png', tmp_path / 'index')
  with pytest.raises(InputError, match='which is a pipe or a device'):
    image_lists.list_images(str(tmp_path / 'list.csv'))


def test_files_that_are_the_same_are_named(photos, tmp_path, caplog):
  caplog.set_level('INFO')
  output = str(tmp_path / 'index')
  assert not build(FakeModel(), photos, output).duplicates
  assert not os.path.exists(f'{output}/duplicates.csv')
  first = photos / 'a' / '00.png'
  (photos / 'b' / 'two\nlines.png').write_bytes(first.read_bytes())
  (photos / 'c' / 'link.png').symlink_to(first)
  (photos / 'c' / 'other.png').write_bytes(b'\0' + first.read_bytes()[1:])
  summary = build(FakeModel(), photos, output)
  expected = [
    (str(photos / 'b' / 'two\nlines.png'), str(first)),
    (str(photos / 'c' / 'link.png'), str(first)),
  ]
  assert summary.duplicates == expected
  assert index_lists.read_duplicates(output) == expected
  assert summary.num_images == 13  # All are in it but `other.png`.
  lines = [r.getMessage() for r in caplog.records if 'same file' in r.message]
  assert lines == [
    f'{photos}/b/two\\nlines.png: the same file as {first}',
    f'{photos}/c/link.png: the same file as {first}',
  ]


def test_an_image_that_was_repaired_is_no_longer_listed(zoo, tmp_path):
  output = tmp_path / 'index'
  build(FakeModel(), zoo, output)
  picture(20).save(zoo / 'zero.jpg')
  summary = build(FakeModel(), zoo, output)
  assert (summary.num_added, len(summary.skipped)) == (1, len(REASONS) - 1)
  listed = [path for path, _ in index_lists.read_skipped(output)]
  assert str(zoo / 'zero.jpg') not in listed and len(listed) == len(REASONS) - 1


def test_images_of_another_place_leave_the_list_alone(zoo, photos, tmp_path):
  output = tmp_path / 'index'
  build(FakeModel(), zoo, output)
  (photos / 'a' / 'bad.png').write_bytes(b'bad')
  build(FakeModel(), photos, output, add=True)
  assert len(index_lists.read_skipped(output)) == len(REASONS) + 1
  index = Index.open(output)
  assert len(index) == len(GOOD) + 11
  assert index.manifest.sources == (str(zoo), str(photos))


def test_a_list_names_images_once_and_may_lead_anywhere(photos, tmp_path):
  file = photos / 'list.csv'
  file.write_text(
    f'label,path\nx,a/00.png\nx,./a/00.png\ny,{photos}/b/01.png\nz,gone.png\n'
  )
  found = image_lists.list_images(str(file))
  assert found.num_repeated == 1
  build(FakeModel(), file, tmp_path / 'index')
  assert names(tmp_path / 'index', photos) == ['a/00.png', 'b/01.png']
  assert index_lists.read_skipped(tmp_path / 'index') == [
    (str(photos / 'gone.png'), 'No such file or directory')
  ]


def test_a_folder_that_may_not_be_read_is_skipped(
  photos, tmp_path, monkeypatch
):
  scandir = os.scandir

  def refusing(path):
    if os.path.basename(path) == 'b':
      raise PermissionError(13, 'Permission denied')
    return scandir(path)

  monkeypatch.setattr(folders.os, 'scandir', refusing)
  (photos / 'c' / 'loop').symlink_to(photos)
  summary = build(FakeModel(), photos, tmp_path / 'index')
  assert summary.num_images == 7
  assert index_lists.read_skipped(tmp_path / 'index') == [
    (str(photos / 'b'), 'folder: Permission denied'),
    (str(photos / 'c' / 'loop'), 'folder: a link to a folder that holds it'),
  ]


def test_an_image_that_may_not_be_read_is_skipped(
  photos, tmp_path, monkeypatch
):
  class Refusing(data.ImageFiles):
    def describe(self, row):
      path = super().describe(row)
      return f'{path}/' if path.endswith('00.png') else path

  monkeypatch.setattr(indexing.data, 'ImageFiles', Refusing)
  assert build(FakeModel(), photos, tmp_path / 'index').num_images == 10


def test_where_nothing_can_be_done_nothing_is_left(photos, tmp_path):
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'bad' / '1.png').write_bytes(b'bad')
  output = tmp_path / 'index'
  with pytest.raises(InputError, match='of whose 1 images none can be read'):
    build(FakeModel(), tmp_path / 'bad', output)
  assert not output.exists()
  build(FakeModel(), photos, output)
  for options in ({'add': True}, {'overwrite': True}):
    with pytest.raises(InputError, match='none can be read'):
      build(FakeModel(), tmp_path / 'bad', output, **options)
    assert len(Index.open(output)) == 11
    assert Index.open(output).manifest.sources == (str(photos),)


def test_what_is_no_index_is_never_replaced(photos, tmp_path):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.txt').write_text('years of work')
  (tmp_path / 'file').write_text('more work')
  for name in ('mine', 'file'):
    for options in ({}, {'add': True}, {'overwrite': True}):
      with pytest.raises(InputError, match='is not an index'):
        build(FakeModel(), photos, tmp_path / name, **options)
  assert os.listdir(tmp_path / 'mine') == ['thesis.txt']


def test_an_index_of_other_images_is_replaced_if_asked(photos, tmp_path):
  output = tmp_path / 'index'
  with pytest.raises(InputError, match='--add is given, but .* no index'):
    build(FakeModel(), photos, output, add=True)
  build(FakeModel(), photos, output)
  with pytest.raises(InputError, match='an index of .*photos.*--overwrite'):
    build(FakeModel(), photos / 'a', output)
  build(FakeModel('b'), photos / 'a', output, overwrite=True)
  index = Index.open(output)
  assert names(output, photos) == [f'a/{i:02}.png' for i in (0, 3, 6, 9)]
  assert index.manifest.model['run'] == 'b'
  (output / 'manifest.json').write_text('damaged')
  with pytest.raises(InputError, match='damaged'):
    build(FakeModel(), photos, output)
  build(FakeModel(), photos, output, overwrite=True)
  assert len(Index.open(output)) == 11


def test_images_of_another_model_are_refused(photos, tmp_path):
  build(FakeModel(), photos / 'a', tmp_path / 'index')
  with pytest.raises(InputError, match='other weights'):
    build(FakeModel('b'), photos, tmp_path / 'index', add=True)


def test_rows_are_found_by_folder_image_and_list(photos, tmp_path):
  output = str(tmp_path / 'index')
  build(FakeModel(), photos, output)
  index = Index.open(output)
  (photos / 'list.csv').write_text('path\nb/01.png\nnot-there.png\n')
  found = {
    'a': [0, 1, 2, 3],
    'a/': [0, 1, 2, 3],
    'c/05.png': [9],
    'list.csv': [4],
    '.': list(range(11)),
  }
  for name, rows in found.items():
    images = os.path.join(str(photos), name)
    assert indexing.find_rows(index, images).tolist() == rows
  for name in ('a/0', 'd'):
    with pytest.raises(InputError, match='has no image of it'):
      indexing.find_rows(index, str(photos / name))
  remove_images(index, indexing.find_rows(index, str(photos / 'a')))
  assert build(FakeModel(), photos, output).num_added == 4


def test_a_full_disk_is_said_and_the_rest_goes_on(
  photos, tmp_path, monkeypatch
):
  write, calls = files.write_text, []

  def fail(path, text):
    calls.append(path)
    if len(calls) > 2:
      raise OSError(28, 'No space left on device')
    write(path, text)

  with monkeypatch.context() as patch:
    patch.setattr(files, 'write_text', fail)
    with pytest.raises(InputError, match='No space left .* the same command'):
      build(FakeModel(), photos, tmp_path / 'index', commit_seconds=0)
  assert len(Index.open(tmp_path / 'index')) == 4
  assert build(FakeModel(), photos, tmp_path / 'index').num_added == 7


@pytest.mark.parametrize(
  'text, message',
  [
    ('name\na.png\n', 'has no column "path"'),
    ('path\n', 'no rows below its header'),
    ('path,x_1,y_1,x_2,y_2\na/00.png,0,0,1,1\n', 'whole images are embedded'),
    ('path,label\n,x\n', 'row 2: path is empty'),
    ('path\nnowhere/1.png\n', 'none of the first 1 images exists'),
    ('', 'is empty'),
  ],
)
def test_a_bad_list_is_one_line(photos, text, message):
  (photos / 'list.csv').write_text(text)
  with pytest.raises(InputError, match=message) as caught:
    image_lists.list_images(str(photos / 'list.csv'))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'name, message',
  [('empty', 'where there are no images'), ('gone', 'does not exist')],
)
def test_a_folder_without_images_is_one_line(tmp_path, name, message):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(InputError, match=message):
    image_lists.list_images(str(tmp_path / name))
