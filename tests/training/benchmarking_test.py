"""A trained run is measured on benchmarks in their official form."""

import json
import pathlib
import pickle

import cv2
import numpy as np
import pytest

import retrieval_jax
from retrieval_jax import evaluate
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import (
  benchmarking,
  checkpoint,
  loop,
  report,
  reporting,
)
from retrieval_jax.training.experiment import make_experiment

pytestmark = pytest.mark.usefixtures('no_drawings')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder of the tests of this file, with Google Landmarks in it."""
  folder = tmp_path_factory.mktemp('benchmarks')
  _write_landmarks(folder / 'gldv2')
  return folder


@pytest.fixture(autouse=True)
def few_pages(monkeypatch):
  """Draws one page of each kind; each takes seconds."""
  write_report = report.write_report

  def write(path, shown):
    if path.endswith(('-hard.html', '-recognition.html', '-cars-merged.html')):
      write_report(path, shown)

  monkeypatch.setattr(report, 'write_report', write)


@pytest.fixture
def run(folder, make_config):
  """The workdir of a run on Google Landmarks; the first test trains it."""
  if not (folder / 'run').exists():
    config = make_config(
      num_train_steps=4,
      data__name='gldv2',
      data__dir=folder / 'gldv2',
      data__recognition=True,
      data__image_size=8,
      data__channels=1,
      data__classes_per_batch=2,
      data__num_threads=1,
      eval__projector_images=0,
    )
    loop.train_and_evaluate(config, str(folder / 'run'))
  return str(folder / 'run')


def _write_image(path, landmark, seed):
  """A picture in which a landmark can be seen, in noise."""
  rng = np.random.default_rng(seed)
  pattern = np.random.default_rng(1000 + landmark).uniform(0, 255, (8, 8))
  picture = np.kron(pattern, np.ones((4, 4))) + rng.normal(0, 50, (32, 32))
  path.parent.mkdir(parents=True, exist_ok=True)
  cv2.imwrite(str(path), np.clip(picture, 0, 255).astype(np.uint8))


def _results(folder):
  with open(f'{folder}/results.json', encoding='utf-8') as file:
    return json.load(file)


def _metrics(folder):
  evaluations = _results(folder)['evaluations']
  return {key: found['metrics'] for key, found in evaluations.items()}


def _ranking(similarities, left_out=()):
  order = np.argsort(-similarities, kind='stable').tolist()
  return [row for row in order if row not in left_out]


# -- Revisited Oxford ---------------------------------------------------------

_BOX = [4.0, 8.0, 28.0, 32.0]
_GND = [
  {'bbx': _BOX, 'easy': [0, 1], 'hard': [2], 'junk': [3, 4]},
  {'bbx': _BOX, 'easy': [], 'hard': [6, 7], 'junk': [5]},
]


def _write_oxford(folder):
  names = [f'{"abc"[i // 5]}_{i:06d}' for i in range(12)]
  for row, name in enumerate(names):
    _write_image(folder / 'jpg' / f'{name}.jpg', row // 5, row)
  for row in range(2):
    _write_image(folder / 'jpg' / f'query_{row}.jpg', row, 100 + row)
  truth = {'imlist': names, 'qimlist': ['query_0', 'query_1'], 'gnd': _GND}
  (folder / 'gnd_roxford5k.pkl').write_bytes(pickle.dumps(truth))
  return names


def _trapezoidal(ranking, wanted, junk):
  """The authors' average precision, of 0-based ranks without the junk."""
  ranking = [row for row in ranking if row not in junk]
  places = [i for i, row in enumerate(ranking) if row in wanted]
  total = 0.0
  for found, place in enumerate(places):
    before = 1.0 if place == 0 else found / place
    total += (before + (found + 1) / (place + 1)) / 2
  return total / len(wanted)


def _oxford_by_hand(run, folder, names, extra=()):
  """Returns setup -> mAP, embedded by the loaded model."""
  model = retrieval_jax.load(run)
  gallery = model.embed([f'{folder}/jpg/{name}.jpg' for name in names])
  if extra:
    gallery = np.concatenate([gallery, model.embed(list(extra))])
  left, top, right, bottom = map(int, _BOX)
  cut = [
    cv2.imread(f'{folder}/jpg/query_{row}.jpg', 0)[top:bottom, left:right]
    for row in range(2)
  ]
  similarities = model.embed(cut) @ gallery.T
  means = {}
  for setup, wanted, junk in (
    ('easy', ['easy'], ['junk', 'hard']),
    ('medium', ['easy', 'hard'], ['junk']),
    ('hard', ['hard'], ['junk', 'easy']),
  ):
    values = []
    for query, row in zip(_GND, similarities, strict=True):
      ok = sum((query[key] for key in wanted), [])
      if ok:
        ignored = sum((query[key] for key in junk), [])
        values.append(_trapezoidal(_ranking(row), ok, ignored))
    means[setup] = np.mean(values)
  return means


def _read(path):
  with open(path, encoding='utf-8') as file:
    return file.read()


def test_revisited_oxford(run, tmp_path, capsys):
  names = _write_oxford(tmp_path)
  own_results = _read(f'{run}/results.json')
  flags = ['--config.data.name=roxford5k', f'--config.data.dir={tmp_path}']
  assert evaluate.main([f'--workdir={run}', *flags]) == 0
  shown = capsys.readouterr().out
  folder = f'{run}/evaluations/roxford5k'
  found = _metrics(folder)
  expected = _oxford_by_hand(run, tmp_path, names)
  assert list(found) == ['easy', 'medium', 'hard']
  for setup, value in expected.items():
    assert list(found[setup]) == [
      'revisited_mean_average_precision',
      *(f'revisited_precision_at_{k}' for k in (1, 5, 10)),
    ]
    mean = found[setup]['revisited_mean_average_precision']
    assert mean == pytest.approx(value, abs=1e-9)
    assert f'{setup}: 2 queries' in shown
  # The second query has no easy image.
  protocol = _results(folder)['evaluations']['easy']['protocol']
  assert protocol['num_lone_queries'] == 1
  assert protocol['ignored'] == ['rows listed for each query']
  assert 'revisited_mean' in _read(f'{folder}/report-hard.html')
  assert _read(f'{run}/results.json') == own_results
  (row,) = reporting.read_history(folder)
  assert row['step'] == 4
  assert row['eval/hard/revisited_precision_at_1'] >= 0
  assert list(pathlib.Path(folder).glob('events.out.tfevents.*'))
  # Under the same name, another measurement is refused.
  assert evaluate.main([f'--workdir={run}', *flags, '--config.seed=1']) == 2
  with pytest.raises(InputError, match='--name: .*data.distractors None ->'):
    overrides = [flag.removeprefix('--config.').split('=') for flag in flags]
    benchmarking.evaluate_on(run, [*overrides, ['data.distractors', '/']])


def test_distractors_and_post_processing(run, tmp_path):
  names = _write_oxford(tmp_path)
  added = [tmp_path / 'million' / 'jpg' / f'{row}.jpg' for row in range(5)]
  for row, path in enumerate(added):
    _write_image(path, row % 2, 200 + row)
  listed = ''.join(f'{path.name}\n' for path in added)
  (tmp_path / 'million' / 'revisitop1m.txt').write_text(listed)
  found = benchmarking.evaluate_on(
    run,
    [
      ('data.name', 'roxford5k'),
      ('data.dir', str(tmp_path)),
      ('data.distractors', str(tmp_path / 'million')),
      ('eval.postprocessing', "('alpha_query_expansion',)"),
      ('eval.alpha_query_expansion.k', '2'),
      ('eval.list_length', '12'),
    ],
    name='r1m',
  )
  expected = _oxford_by_hand(run, tmp_path, names, map(str, added))
  for setup, value in expected.items():
    mean = found[setup]['revisited_mean_average_precision']
    assert mean == pytest.approx(value, abs=1e-9)
  results = _results(f'{run}/evaluations/r1m')
  assert results['evaluations']['hard']['protocol']['gallery_size'] == 17
  for setup, (without, expanded) in results['ablation'].items():
    name = 'revisited_precision_at_1'
    assert without['metrics'][name] == pytest.approx(found[setup][name])
    assert expanded['metrics'].keys() == found[setup].keys()
    sentences = expanded['protocol']['definitions'].values()
    assert all('the first 12 of 17 gallery rows' in s for s in sentences)


# -- Google Landmarks ---------------------------------------------------------

_CLEAN = {7: range(4), 30: range(4, 8), 41: range(8, 12)}
_INDEX = [0, 1, 0, 2, 1, 3]
# Query -> (what it shows, the index images to find, usage).
_QUERIES = {
  'a00': (0, [2, 0], 'Public'),
  'a01': (1, [1], 'Private'),
  'a02': (0, None, 'Ignored'),
  'a03': (2, [3], 'Public'),
}
# Test image -> (what it shows, landmarks, usage).
_SHOWN = {
  'a00': (0, '7', 'Public'),
  'b01': (1, '30 7', 'Public'),
  'b02': (2, '', 'Public'),
  'b03': (2, '41', 'Private'),
  'b04': (3, '99', 'Private'),
  'b05': (0, '', 'Ignored'),
}


def _id(text):
  return f'{text:0<16}'


def _landmark_path(kind, text):
  name = _id(text)
  return f'{kind}/{name[0]}/{name[1]}/{name[2]}/{name}.jpg'


def _write_landmarks(root):
  lines = {
    'train/train_clean.csv': ['landmark_id,images'],
    'index/index.csv': ['id'],
    'test/retrieval_solution_v2.1.csv': ['id,images,Usage'],
    'test/recognition_solution_v2.1.csv': ['id,landmarks,Usage'],
  }
  clean, index, retrieval, recognition = lines.values()
  for number, (landmark, images) in enumerate(_CLEAN.items()):
    names = [f'c{image:02d}' for image in images]
    clean.append(f'{landmark},{" ".join(map(_id, names))}')
    for row, name in enumerate(names):
      _write_image(root / _landmark_path('train', name), number, row)
  for row, landmark in enumerate(_INDEX):
    index.append(_id(f'd{row:02d}'))
    path = root / _landmark_path('index', f'd{row:02d}')
    _write_image(path, landmark, 300 + row)
  for name, (landmark, rows, usage) in _QUERIES.items():
    wanted = ' '.join(_id(f'd{row:02d}') for row in rows or []) or 'None'
    retrieval.append(f'{_id(name)},{wanted},{usage}')
    seed = 400 + int(name[1:])
    _write_image(root / _landmark_path('test', name), landmark, seed)
  for name, (landmark, shown, usage) in _SHOWN.items():
    recognition.append(f'{_id(name)},{shown},{usage}')
    seed = 400 + int(name[1:])
    _write_image(root / _landmark_path('test', name), landmark, seed)
  for name, content in lines.items():
    (root / name).write_text('\n'.join(content) + '\n')


def _embedded(run, root, kind, names):
  paths = [str(root / _landmark_path(kind, name)) for name in names]
  return retrieval_jax.load(run).embed(paths)


@pytest.mark.parametrize('usage', ['', 'Public', 'Private'])
def test_google_landmarks_retrieval(run, folder, usage):
  index = [f'd{row:02d}' for row in range(len(_INDEX))]
  gallery = _embedded(run, folder / 'gldv2', 'index', index)
  asked = {
    name: rows
    for name, (_, rows, own) in _QUERIES.items()
    if rows and own in (usage or own)
  }
  queries = _embedded(run, folder / 'gldv2', 'test', asked)
  values = []
  for row, wanted in zip(queries @ gallery.T, asked.values(), strict=True):
    found, total = 0, 0.0
    for rank, place in enumerate(_ranking(row)[:100], 1):
      if place in wanted:
        found += 1
        total += found / rank
    values.append(total / min(len(wanted), 100))
  name = f'retrieval_{usage.lower()}'.rstrip('_')
  measured = _results(run)['evaluations'][name]
  assert measured['metrics'] == {
    'mean_average_precision_at_100': pytest.approx(np.mean(values), abs=1e-9)
  }
  assert measured['protocol']['num_queries'] == len(asked)
  assert measured['protocol']['gallery_size'] == len(_INDEX)


@pytest.mark.parametrize('usage', ['', 'Public', 'Private'])
def test_google_landmarks_recognition(run, folder, usage):
  train = [f'c{image:02d}' for images in _CLEAN.values() for image in images]
  labels = [key for key, images in _CLEAN.items() for _ in images]
  gallery = _embedded(run, folder / 'gldv2', 'train', train)
  shown = {
    name: text.split()
    for name, (_, text, own) in _SHOWN.items()
    if own != 'Ignored' and own in (usage or own)
  }
  predictions = []
  similarities = _embedded(run, folder / 'gldv2', 'test', shown) @ gallery.T
  for name, row in zip(shown, similarities, strict=True):
    votes = {}
    for place in _ranking(row)[:3]:
      votes[labels[place]] = votes.get(labels[place], 0) + row[place] / 3
    landmark = max(votes, key=votes.get)
    predictions.append((-votes[landmark], name, str(landmark)))
  # The unseen landmark 99 counts, as a query that nothing can answer.
  num_landmarks = sum(bool(own) for own in shown.values())
  gap, right = 0.0, 0
  for rank, (_, name, landmark) in enumerate(sorted(predictions), 1):
    if landmark in shown[name]:
      right += 1
      gap += right / rank / num_landmarks
  name = f'recognition_{usage.lower()}'.rstrip('_')
  measured = _results(run)['evaluations'][name]
  assert measured['metrics'] == pytest.approx(
    {'gap': gap, 'top_1_accuracy': right / num_landmarks}, abs=1e-9
  )
  lone = measured['protocol']['num_lone_queries']
  assert lone == len(shown) - num_landmarks
  if not usage:
    assert 'P(i) rel(i)' in _read(f'{run}/report-recognition.html')


def test_retrieval_alone_needs_no_training_images(run, folder):
  found = benchmarking.evaluate_on(
    run,
    [('data.subset', 'none'), ('data.recognition', 'False')],
    name='none',
    step=4,
  )
  sentence = _results(f'{run}/evaluations/none')['selection']['sentence']
  assert sentence == 'weights of step 4, which was asked for'
  own = _metrics(run)
  assert list(found) == ['retrieval', 'retrieval_public', 'retrieval_private']
  assert found == {name: own[name] for name in found}


# -- UnED ---------------------------------------------------------------------

# Domain -> file -> (what an image shows, its class).
_DOMAINS = {
  'cars': {'test': [(0, 5), (0, 5), (1, 2), (1, 2), (2, 9)]},
  'gldv2': {
    'test': [(0, [5, 8]), (2, 4)],
    'index': [(0, 5), (1, 8), (1, 5), (2, 4), (3, 1)],
  },
  'rp2k': {'test': [(3, 0), (3, 0)]},
}


def _write_uned(root):
  """Returns domain -> file -> (paths, classes)."""
  written = {}
  for domain, files in _DOMAINS.items():
    (root / 'info_files' / domain).mkdir(parents=True)
    written[domain] = {}
    for kind, images in files.items():
      entries, paths = [], []
      for row, (shown, own) in enumerate(images):
        # As `unzip` spells it where it does not know the encoding.
        letter = '中' if domain == 'rp2k' else 'x'
        path = f'{domain}/{letter}/{kind}{row}.jpg'
        entries.append({'path': path, 'class_id': own})
        paths.append(str(root / 'images' / path.replace('中', '#U4e2d')))
        seed = 500 + 10 * len(written) + row + 5 * (kind == 'index')
        _write_image(
          root / 'images' / path.replace('中', '#U4e2d'), shown, seed
        )
      file = root / 'info_files' / domain / f'{kind}.json'
      file.write_text(json.dumps(entries))
      written[domain][kind] = paths, [own for _, own in images]
  (root / 'info_files' / 'README').touch()
  return written


def test_uned(run, tmp_path, capsys):
  written = _write_uned(tmp_path)
  flags = ['--config.data.name=uned', f'--config.data.dir={tmp_path}']
  assert evaluate.main([f'--workdir={run}', *flags]) == 0
  shown = capsys.readouterr().out
  model = retrieval_jax.load(run)
  index = []  # (domain, class, path) of everything that is searched in.
  for domain, files in written.items():
    paths, classes = files.get('index', files['test'])
    index += [(domain, own, p) for p, own in zip(paths, classes, strict=True)]
  everything = model.embed([path for *_, path in index])
  found = _metrics(f'{run}/evaluations/uned')
  means = {'separate': [], 'merged': []}
  for kind, own_means in means.items():
    for domain, files in written.items():
      values = []
      for path, own in zip(*files['test'], strict=True):
        own = own if isinstance(own, list) else [own]
        itself = [row for row, item in enumerate(index) if item[2] == path]
        others = [row for row, item in enumerate(index) if item[0] != domain]
        left_out = itself + others * (kind == 'separate')
        ranking = _ranking(everything @ model.embed([path])[0], left_out)
        right = [index[r][0] == domain and index[r][1] in own for r in ranking]
        if any(right):
          depth = min(sum(right), 5)
          values.append([right[0], sum(right[:depth]) / depth])
      own_means.append(np.mean(values, axis=0))
      names = ('precision_at_1', 'mean_modified_precision_at_5')
      assert found[f'{domain}/{kind}'] == pytest.approx(
        dict(zip(names, own_means[-1], strict=True)), abs=1e-9
      )
    saved = _results(f'{run}/evaluations/uned')['means'][kind]
    assert list(saved.values()) == pytest.approx(np.mean(own_means, axis=0))
    assert f'{kind}, mean over the data sets' in shown
  assert 'Each query excluded' in _read(
    f'{run}/evaluations/uned/report-cars-merged.html'
  )
  (row,) = reporting.read_history(f'{run}/evaluations/uned')
  assert 'eval/mean/merged/precision_at_1' in row


def test_data_that_are_no_benchmark(run):
  found = benchmarking.evaluate_on(
    run, [('data.name', 'tiny'), ('eval.metrics', 'recall_at_1')]
  )
  assert list(found) == ['test'] and list(found['test']) == ['recall_at_1']
  measured = _results(f'{run}/evaluations/tiny')['evaluations']['test']
  # The queries of the set, against its training images as the gallery.
  protocol = measured['protocol']
  assert (protocol['num_queries'], protocol['gallery_size']) == (40, 80)


# -- mistakes -----------------------------------------------------------------


def _refused(run, words, *overrides, **options):
  with pytest.raises(InputError, match=words) as caught:
    benchmarking.evaluate_on(run, overrides, **options)
  assert '\n' not in str(caught.value)


def test_mistakes(run, tmp_path, make_config):
  _write_oxford(tmp_path)
  oxford = ('data.name', 'roxford5k'), ('data.dir', str(tmp_path))
  _refused(
    run, 'gnd_rparis6k.pkl is missing', ('data.name', 'rparis6k'), oxford[1]
  )
  _refused(
    run, "data.subset is 'clean', but", *oxford,
    ('data.subset', 'clean'), name='z',
  )  # fmt: skip
  _refused(run, 'config.loss.margin is given', *oxford, ('loss.margin', '1'))
  _refused(run, "--name is 'a/b'", *oxford, name='a/b')
  _refused(run, 'no checkpoint of step 3', *oxford, name='x', step=3)
  _refused(
    run, 'does not take images of .12, 12, 1.', *oxford,
    ('data.image_size', '12'), name='large',
  )  # fmt: skip
  _refused(
    run, 'revisitop1m.txt is missing', *oxford,
    ('data.distractors', str(tmp_path)), name='far',
  )  # fmt: skip
  _refused(
    run, "with data.subset 'none'", ('data.subset', 'none'), name='none2'
  )
  _refused(str(tmp_path), 'is not the workdir of a run', *oxford)
  _refused(run, "'mixture'; allowed is one data set", ('data.name', 'mixture'))
  with pytest.raises(InputError, match='python -m retrieval_jax.evaluate'):
    make_experiment(
      make_config(
        data__name='roxford5k', data__dir=tmp_path, data__image_size=8
      )
    )
  for path in (tmp_path / 'jpg').glob('query_*'):
    path.unlink()
  _refused(run, 'none of the first 2 images .*query_0.jpg', *oxford, name='y')
  assert evaluate.main([f'--workdir={run}']) == 2
  assert checkpoint.read_config(run).data.name == 'gldv2'
