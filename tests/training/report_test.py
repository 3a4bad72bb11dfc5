"""The page: its parts, its order, and that it asks nobody for anything."""

import dataclasses
import html.parser
import os
import tempfile
import types
from unittest import mock

import numpy as np
from absl.testing import parameterized

from retrieval_jax import metrics
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import (
  ablation,
  plots,
  report,
  report_data,
  report_queries,
)

_SECTIONS = [
  'results',
  'training',
  'curves',
  'neighbors',
  'failures',
  'confusions',
  'map',
  'ablation',
  'details',
]
_VOID = {'meta', 'img', 'br', 'source'}


class _Page(html.parser.HTMLParser):
  """Collects text, classes, addresses and alternatives, by section."""

  def __init__(self, page: str):
    super().__init__()
    self.sections, self.open = [], []
    self.text, self.images, self.frames = {}, {}, {}
    self.addresses, self.scripts = [], 0
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    if tag == 'section':
      self.sections.append(attributes['id'])
      self.images[self.sections[-1]], self.frames[self.sections[-1]] = [], []
    if tag not in _VOID:
      self.open.append(tag)
    if tag == 'img':
      self.images[self.sections[-1]].append(attributes['alt'])
    if tag == 'figure':
      self.frames[self.sections[-1]].append(attributes['class'])
    self.scripts += tag == 'script'
    for name in ('src', 'srcset', 'href'):
      if name in attributes:
        self.addresses.append(attributes[name])

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, tag

  def handle_data(self, data):
    section = self.sections[-1] if 'section' in self.open else 'header'
    self.text[section] = self.text.get(section, '') + data + ' '


def _data(
  *, num_queries=40, gallery_size=60, num_classes=4, k=10, shape=(8, 8, 1)
) -> report_data.ReportData:
  """A run on random embeddings around the centres of classes."""
  rng = np.random.default_rng(0)
  centers = rng.normal(size=(num_classes, 6))

  def embed(labels):
    rows = centers[labels] + rng.normal(size=(len(labels), 6))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)

  query_labels = np.arange(num_queries) % num_classes
  gallery_labels = np.arange(gallery_size) % num_classes
  query, gallery = embed(query_labels), embed(gallery_labels)
  similarities = query @ gallery.T
  order = np.argsort(-similarities, axis=1, kind='stable')
  right = gallery_labels[order] == query_labels[:, None]
  precision = np.cumsum(right, axis=1) / np.arange(1, gallery_size + 1)
  per_query = {
    'precision_at_1': right[:, 0].astype(float),
    'mean_average_precision': (precision * right).sum(1) / right.sum(1),
  }
  metrics = {name: float(np.mean(v)) for name, v in per_query.items()}
  images = rng.integers(0, 256, (97, *shape), np.uint8)
  history = [
    {'step': step, 'train/loss': 1.0 / step, 'train/learning_rate': 0.1}
    | (
      {f'eval/test/{n}': v for n, v in metrics.items()} if step % 5 == 0 else {}
    )
    for step in range(1, 21)
  ]
  return report_data.ReportData(
    title='circle on digits',
    config={'loss': {'name': 'circle', 'margin': 0.4}, 'eval': {'ks': [1, 5]}},
    evaluation=types.SimpleNamespace(
      metrics=metrics,
      ranges={name: (value, value) for name, value in metrics.items()},
      protocol={
        'similarity': 'cosine',
        'num_queries': num_queries,
        'num_lone_queries': 0,
        'gallery_size': gallery_size,
        'self_excluded': False,
        'tie_rate': 0.0,
        'definitions': {'precision_at_1': 'the share of right first images'},
        'warnings': [],
      },
      per_query=per_query,
      curves=None,
    ),
    history=history,
    query_embeddings=query,
    gallery_embeddings=gallery,
    query_labels=query_labels,
    gallery_labels=gallery_labels,
    class_names=[f'class {i}' for i in range(num_classes)],
    query_images=lambda indices: images[indices % 97],
    gallery_images=lambda indices: images[indices % 89],
    neighbor_indices=order[:, :k],
    neighbor_similarities=np.take_along_axis(similarities, order, 1)[:, :k],
    versions={'jax': '1.2.3'},
  )


def _evaluation(data, **changes):
  """Returns data with an evaluation of which some fields are replaced."""
  fields = vars(data.evaluation) | changes
  return dataclasses.replace(data, evaluation=types.SimpleNamespace(**fields))


class PageTest(parameterized.TestCase):
  """What the page says; the drawings, which take the time, are left out."""

  def setUp(self):
    super().setUp()
    for name in ('draw_curves', 'draw_map'):
      self.enter_context(
        mock.patch.object(plots, name, autospec=True, return_value=b'')
      )

  def test_has_every_part(self):
    data = _data()
    page = _Page(report.render_report(data))
    self.assertEqual(page.sections, _SECTIONS)
    self.assertEmpty(page.open)
    self.assertIn('circle on digits', page.text['header'])
    self.assertIn('40 queries against 60 gallery images', page.text['header'])
    results = page.text['results']
    for name, value in data.evaluation.metrics.items():
      self.assertIn(name, results)
      self.assertIn(f'{value:.4f}', results)
    self.assertIn('the share of right first images', results)
    self.assertIn('Lone queries', results)
    self.assertNotIn('order of ties', results)
    self.assertLen(page.images['training'], 2)
    self.assertIn('loss from 1 at step 1 to 0.05', page.images['training'][0])
    self.assertLen(page.images['neighbors'], 8 * 11)
    self.assertLen(page.images['map'], 1)
    self.assertIn('loss.margin', page.text['details'])
    self.assertIn('1.2.3', page.text['details'])

  def test_asks_nobody_for_anything(self):
    text = report.render_report(_data())
    page = _Page(text)
    for address in page.addresses:
      self.assertStartsWith(address, ('data:image/', '#'))
    links = {address[1:] for address in page.addresses if address[0] == '#'}
    self.assertEqual(links, set(_SECTIONS))
    self.assertEqual(page.scripts, 0)
    self.assertNotIn('://', text)
    self.assertNotIn('@import', text)
    self.assertNotIn('url(', text)
    # The one "http" of the page is the name of the policy's attribute.
    self.assertEqual(text.count('http'), text.count('http-equiv='))
    self.assertIn("default-src 'none'", text)

  def test_every_image_says_what_it_is(self):
    page = _Page(report.render_report(_data()))
    for images in page.images.values():
      for alternative in images:
        self.assertNotEmpty(alternative)

  def test_frames_follow_the_labels(self):
    data = _data()
    page = _Page(report.render_report(data))
    rows = np.array(page.frames['neighbors']).reshape(8, 11)
    self.assertEqual(set(rows[:, 0]), {'query'})
    shown = [
      int(alternative.split(',')[0].removeprefix('query '))
      for alternative in page.images['neighbors'][::11]
    ]
    np.testing.assert_array_equal(rows[:, 1:] == 'right', data.right[shown])
    self.assertEqual(set(data.query_labels[shown]), {0, 1, 2, 3})

  def test_lists_that_end_show_fewer(self):
    data = _data()
    indices = data.neighbor_indices.copy()
    indices[:, 7:] = -1
    indices[3] = -1
    data = dataclasses.replace(data, neighbor_indices=indices)
    self.assertFalse(data.right[:, 7:].any())
    page = _Page(report.render_report(data))
    self.assertLen(page.images['neighbors'], 8 * 8)
    for section in ('neighbors', 'confusions'):
      self.assertFalse(
        any(alt.startswith('query 3,') for alt in page.images[section])
      )
    self.assertEqual(
      report_queries.gallery_image(data, num_queries=2, k=8).shape[0],
      2 * 74 + 4,
    )
    wrong = np.sum(~data.right[:, 0]) - 1
    self.assertIn(f'all {wrong}', page.text['map'])

  def test_says_what_is_left_out(self):
    data = _data()
    told = ["rows of the query's own sequence", 'rows listed']
    protocol = data.evaluation.protocol | {'ignored': told}
    page = _Page(report.render_report(_evaluation(data, protocol=protocol)))
    self.assertIn(', '.join(told), page.text['results'])

  def test_failures_come_lowest_first(self):
    data = _data()
    page = _Page(report.render_report(data))
    shown = [
      int(alternative.split(',')[0].removeprefix('query '))
      for alternative in page.images['failures']
      if alternative.startswith('query ')
    ]
    scores = data.evaluation.per_query['mean_average_precision']
    self.assertEqual(shown, np.argsort(scores, kind='stable')[:10].tolist())
    self.assertIn(f'{scores.min():.4f}', page.text['failures'])

  def test_failures_use_another_score_if_map_was_not_measured(self):
    data = _data()
    scores = data.evaluation.per_query['precision_at_1']
    data = _evaluation(data, per_query={'precision_at_1': scores})
    page = _Page(report.render_report(data))
    self.assertIn('precision at 1 below 1', page.text['failures'])
    page = _Page(report.render_report(_evaluation(data, per_query={})))
    self.assertIn('No score', page.text['failures'])

  def test_confusions_are_counted(self):
    data = _data(num_queries=5, num_classes=3, gallery_size=6, k=2)
    # Queries 0 1 2 0 1 find classes 1 2 2 1 1.
    data = dataclasses.replace(
      data,
      neighbor_indices=np.array([[1, 0], [2, 0], [5, 0], [4, 0], [4, 1]]),
    )
    text = ' '.join(
      _Page(report.render_report(data)).text['confusions'].split()
    )
    self.assertIn('3 queries have', text)
    self.assertIn('2 ordered pairs', text)
    self.assertIn('class 0 → class 1 2 100.0% class 1 → class 2 1 50.0%', text)

  def test_escapes_what_users_name(self):
    nasty = '<script>alert("x")</script>&\'$title $$ $'
    lists = metrics.evaluate_lists([[1], [0]], [5, 5])
    data = _evaluation(
      _data(),
      protocol={
        'definitions': {'precision_at_1': nasty},
        'warnings': [nasty],
        'similarity': nasty,
      },
    )
    data = dataclasses.replace(
      data,
      title=nasty,
      class_names=[nasty] * 4,
      config={nasty: {nasty: [nasty]}},
      versions={nasty: nasty},
      pairs_note=nasty,
      ablation=[ablation.Variant((nasty,), lists)],
    )
    page = _Page(report.render_report(data))
    self.assertEqual(page.scripts, 0)
    self.assertEqual(page.sections, _SECTIONS)
    for section in page.sections:
      if section != 'training':
        self.assertIn(nasty, page.text[section])
    self.assertIn(nasty, page.images['neighbors'][0])

  def test_shows_ties_warnings_and_lone_queries(self):
    data = _data()
    evaluation = data.evaluation
    per_query = {n: v.copy() for n, v in evaluation.per_query.items()}
    for values in per_query.values():
      values[:4] = np.nan
    data = _evaluation(
      data,
      ranges={'precision_at_1': (0.25, 0.75)},
      per_query=per_query,
      protocol=evaluation.protocol
      | {'warnings': ['it has collapsed'], 'num_lone_queries': 1234},
    )
    page = _Page(report.render_report(data))
    self.assertIn('0.2500 to 0.7500 by the order of ties', page.text['results'])
    self.assertIn('it has collapsed', page.text['results'])
    self.assertIn('1,234', page.text['results'])
    for section in ('neighbors', 'failures'):
      for query in range(4):
        self.assertFalse(
          any(a.startswith(f'query {query},') for a in page.images[section])
        )

  def test_warns_of_a_loss_that_was_not_finite(self):
    history = [
      {'step': step, 'train/loss': loss}
      for step, loss in ((10, 1.0), (1200, float('nan')), (1300, np.inf))
    ]
    data = dataclasses.replace(_data(), history=history)
    text = _Page(report.render_report(data)).text['training']
    self.assertIn('not finite at 2 logged steps', text)
    self.assertIn('first at step 1,200 (dotted red line): loss', text)

  def test_draws_a_loss_of_one_term_once(self):
    rows = [{'step': 1, 'train/loss': 2.0, 'train/loss_circle': 2.0}]
    data = dataclasses.replace(_data(), history=rows)
    text = _Page(report.render_report(data)).text['training']
    self.assertNotIn('loss_circle', text)
    rows = [row | {'train/loss_circle': 1.5} for row in rows]
    data = dataclasses.replace(data, history=rows)
    text = _Page(report.render_report(data)).text['training']
    self.assertIn('loss_circle', text)

  @parameterized.parameters(
    (None, '0'), ([], '0'), (('only one',), 'only one'), (('a', 'b'), 'a')
  )
  def test_classes_without_names_go_by_number(self, names, first):
    data = dataclasses.replace(_data(), class_names=names, config={})
    page = _Page(report.render_report(data))
    self.assertEndsWith(page.images['neighbors'][0], f'of class {first}')
    self.assertEndsWith(page.images['neighbors'][-11], 'of class 3')

  def test_all_right_says_so(self):
    page = _Page(report.render_report(_data(num_classes=1)))
    self.assertIn(
      'None: every query has average precision 1', page.text['failures']
    )
    self.assertIn('None: the nearest gallery image', page.text['confusions'])
    self.assertEmpty(page.images['failures'])

  def test_no_history_says_so(self):
    data = dataclasses.replace(_data(), history=[])
    self.assertIn(
      'no training history', _Page(report.render_report(data)).text['training']
    )


class WholePageTest(parameterized.TestCase):
  """The page with its drawings."""

  def test_same_data_same_bytes(self):
    self.assertEqual(
      report.render_report(_data()), report.render_report(_data())
    )

  @parameterized.named_parameters(
    ('one_class', {'num_classes': 1}, {}),
    ('one_neighbor', {'k': 1}, {}),
    ('one_query', {'num_queries': 1, 'num_classes': 1}, {}),
    ('one_image', {'num_classes': 1, 'gallery_size': 1, 'k': 1}, {}),
    ('large_colour', {'shape': (120, 100, 3), 'num_queries': 12}, {}),
    ('many_classes', {'num_classes': 30, 'gallery_size': 90}, {}),
    ('no_history', {}, {'history': []}),
    (
      'evaluations_only',
      {},
      {'history': [{'step': 1, 'eval/test/precision_at_1': 1}]},
    ),
    ('only_nan', {}, {'history': [{'step': 1, 'train/loss': float('nan')}]}),
  )
  def test_degenerate_runs(self, sizes, changes):
    data = dataclasses.replace(_data(**sizes), **changes)
    page = _Page(report.render_report(data))
    self.assertEqual(page.sections, _SECTIONS)
    self.assertEmpty(page.open)
    self.assertNotEmpty(page.images['neighbors'])
    report_queries.gallery_image(data)

  @parameterized.named_parameters(
    ('queries', {'num_queries': 10_000, 'gallery_size': 200}, 'all 200'),
    (
      'gallery',
      {'num_queries': 100, 'gallery_size': 20_000},
      '4,000 at random of 20,000',
    ),
  )
  def test_stays_small_for_many(self, sizes, told):
    data = _data(num_classes=40, shape=(224, 224, 3), **sizes)
    text = report.render_report(data)
    self.assertLess(len(text), 2_500_000)  # Noise, the worst of photographs.
    page = _Page(text)
    self.assertIn(told, page.text['map'])
    self.assertIn('30 smaller classes', page.text['map'])


class GalleryImageTest(parameterized.TestCase):
  def test_has_a_row_for_each_query(self):
    data = _data(shape=(32, 32, 3))
    sheet = report_queries.gallery_image(data, num_queries=3, k=5)
    self.assertEqual(sheet.dtype, np.uint8)
    self.assertEqual(sheet.shape, (3 * 74 + 4, 6 * 74 + 8 + 4, 3))
    self.assertEqual(report_queries.gallery_image(data).shape[0], 8 * 74 + 4)


class WriteReportTest(parameterized.TestCase):
  def test_replaces_the_page_whole(self):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    path = os.path.join(folder, 'report.html')
    for title in ('older', 'newer ✓'):
      with mock.patch.object(report, 'render_report', return_value=title):
        report.write_report(path, _data())
    with open(path, encoding='utf-8') as file:
      self.assertEqual(file.read(), 'newer ✓')
    self.assertEqual(os.listdir(folder), ['report.html'])

  def test_a_folder_that_is_missing_is_one_line(self):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    path = os.path.join(folder, 'no', 'report.html')
    with mock.patch.object(report, 'render_report', return_value='page'):
      with self.assertRaisesRegex(InputError, 'cannot be written'):
        report.write_report(path, _data())


class InstalledVersionsTest(parameterized.TestCase):
  def test_names_what_makes_a_run(self):
    versions = report_data.installed_versions()
    self.assertContainsSubset({'python', 'jax', 'flax', 'numpy'}, versions)
