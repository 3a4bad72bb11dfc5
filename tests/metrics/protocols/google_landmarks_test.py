"""Google Landmarks v2 against loops of its definitions, and its files."""

import itertools
import os

import numpy as np
import pytest

from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import definitions
from retrieval_jax.metrics.protocols import google_landmarks, landmark_files


def _loop_map(predictions, solution, k=100):
  total = 0.0
  for query, images in solution.items():
    seen, correct, average = set(), 0, 0.0
    for place, image in enumerate(predictions.get(query, [])[:k], 1):
      if image not in seen and image in images:
        correct += 1
        average += correct / place
      seen.add(image)
    total += average / min(len(images), k)
  return total / len(solution)


def _loop_gap(ranked, solution):
  """`ranked`: (image, landmark), best first."""
  right, gap = 0, 0.0
  for place, (image, landmark) in enumerate(ranked, 1):
    if landmark in solution[image]:
      right += 1
      gap += right / place
  return gap / sum(bool(landmarks) for landmarks in solution.values())


def test_retrieval_by_hand():
  solution = {'q': ['a', 'b'], 'r': ['c'], 's': ['d']}
  predictions = {'q': ['a', 'a', 'b'], 'r': ['x', 'c']}
  # q: a repeated image keeps its rank; s: no prediction scores 0.
  expected = ((1 + 2 / 3) / 2 + 1 / 2 + 0) / 3
  result = google_landmarks.retrieval(predictions, solution)
  assert result.metrics == pytest.approx(
    {'mean_average_precision_at_100': expected}
  )
  assert result.protocol['num_queries'] == 3


def test_a_string_is_no_list_of_images():
  lists, string = {'q': ['a', 'b']}, {'q': 'a b'}
  x = np.eye(2)
  with pytest.raises(InputError, match=r"predictions\['q'\] .* \['a', 'b'\]"):
    google_landmarks.retrieval(string, lists)
  with pytest.raises(InputError, match=r"solution\['q'\] is the string 'a b'"):
    google_landmarks.retrieval(lists, string)
  with pytest.raises(InputError, match=r"solution\['q'\] is the string 'a b'"):
    google_landmarks.retrieval_of_embeddings(x[:1], ['q'], x, 'ab', string)


def test_the_denominator_is_at_most_100():
  images = [f'i{n}' for n in range(250)]
  for number, found in ((150, 120), (150, 30), (40, 40)):
    result = google_landmarks.retrieval(
      {'q': images[:found]}, {'q': images[:number]}
    )
    expected = min(found, number, 100) / min(number, 100)
    assert list(result.metrics.values()) == pytest.approx([expected])


def test_retrieval_equals_the_loop():
  random = np.random.default_rng(0)
  images = np.array([f'{n:04x}' for n in range(400)])
  solution = {
    f'q{n}': random.permutation(images)[: random.integers(1, 200)].tolist()
    for n in range(30)
  }
  predictions = {  # With repetitions, longer than 100, some missing.
    query: random.choice(images, random.integers(0, 160)).tolist()
    for query in list(solution)[:25]
  }
  result = google_landmarks.retrieval(predictions, solution)
  assert list(result.metrics.values()) == pytest.approx(
    [_loop_map(predictions, solution)]
  )
  with pytest.raises(InputError, match="'z' is no query of the solution"):
    google_landmarks.retrieval({'z': []}, solution)


def test_retrieval_of_embeddings_equals_that_of_lists(tmp_path):
  random = np.random.default_rng(1)
  queries, index = random.normal(size=(6, 4)), random.normal(size=(150, 4))
  query_ids = [f'q{n}' for n in range(6)]
  index_ids = [f'i{n}' for n in range(150)]
  solution = {
    query: random.permutation(index_ids)[:number].tolist()
    for query, number in zip(query_ids[::-1][:4], (1, 5, 110, 30), strict=True)
  }
  unit = index / np.linalg.norm(index, axis=1, keepdims=True)
  predictions = {
    query: [index_ids[row] for row in np.argsort(-unit @ x)[:100]]
    for query, x in zip(query_ids, queries, strict=True)
    if query in solution
  }
  arguments = queries, query_ids, index, index_ids
  result = google_landmarks.retrieval_of_embeddings(*arguments, solution)
  assert list(result.metrics.values()) == pytest.approx(
    [_loop_map(predictions, solution)]
  )
  np.save(tmp_path / 'q.npy', queries)
  np.save(tmp_path / 'i.npy', index)
  files = str(tmp_path / 'q.npy'), query_ids, str(tmp_path / 'i.npy'), index_ids
  again = google_landmarks.retrieval_of_embeddings(*files, solution)
  assert again.metrics == result.metrics
  for wrong in ({'q0': ['z']}, {'z': ['i0']}):
    with pytest.raises(InputError, match="'z' of the solution has no"):
      google_landmarks.retrieval_of_embeddings(*arguments, wrong)
  with pytest.raises(InputError, match='index_ids: 149 ids'):
    google_landmarks.retrieval_of_embeddings(
      *arguments[:3], index_ids[:-1], solution
    )


def test_recognition_by_hand():
  # 'n' shows no landmark and is ranked first; 'b' has no prediction.
  solution = {'a': [1, 9], 'b': [2], 'c': [3], 'n': []}
  predictions = {'n': (1, 0.9), 'a': (9, 0.8), 'c': (4, 0.7)}
  result = google_landmarks.recognition(predictions, solution)
  assert result.gap == pytest.approx((1 / 2) / 3)
  assert result.expected_gap == pytest.approx(result.gap)
  assert result.range == pytest.approx((result.gap, result.gap))
  assert result.top1_accuracy == pytest.approx(1 / 3)
  assert (result.num_landmark_images, result.num_predictions) == (3, 3)


@pytest.mark.parametrize('seed', range(6))
def test_recognition_equals_the_loop_in_every_order_of_ties(seed):
  random = np.random.default_rng(seed)
  images = [f'{n}' for n in random.permutation(7)]
  solution = {
    image: random.permutation(3)[: random.integers(0, 3)].tolist()
    for image in images
  }
  solution[images[0]] = [1]
  predictions = {
    image: (int(random.integers(3)), float(random.integers(3)))
    for image in images[:6]
  }
  result = google_landmarks.recognition(predictions, solution)
  groups = [
    sorted(
      (image, landmark)
      for image, (landmark, own) in predictions.items()
      if own == score
    )
    for score in (2.0, 1.0, 0.0)
  ]
  assert result.gap == pytest.approx(
    _loop_gap(list(itertools.chain(*groups)), solution)
  )
  values = [
    _loop_gap(list(itertools.chain(*order)), solution)
    for order in itertools.product(*map(itertools.permutations, groups))
  ]
  assert result.expected_gap == pytest.approx(np.mean(values))
  assert result.range == pytest.approx((min(values), max(values)))


@pytest.mark.parametrize(
  'predictions, solution, words',
  [
    ({'a': (1, float('nan'))}, {'a': [1]}, "score of 'a' is nan"),
    ({'b': (1, 0.5)}, {'a': [1]}, "'b' is not in the solution"),
    ({'a': (1, 0.5)}, {'a': []}, 'no image with a landmark'),
  ],
)
def test_recognition_refusals(predictions, solution, words):
  with pytest.raises(InputError, match=words):
    google_landmarks.recognition(predictions, solution)


@pytest.mark.parametrize('end, value', [('expected', 0.1), ('highest', 0.9)])
def test_an_impossible_gap_is_a_defect(monkeypatch, end, value):
  evaluate = definitions.evaluate

  def wrong(*args):
    values = evaluate(*args)['gap']
    return {'gap': values._replace(**{end: np.array([value])})}

  predictions = {'a': (1, 0.5), 'b': (2, 0.4)}
  solution = {'a': [1], 'b': [2]}
  assert google_landmarks.recognition(predictions, solution).gap == 1
  monkeypatch.setattr(definitions, 'evaluate', wrong)
  with pytest.raises(AssertionError, match='gap left the range'):
    google_landmarks.recognition(predictions, solution)


def test_no_prediction_is_zero():
  result = google_landmarks.recognition({}, {'a': [1]})
  assert (result.gap, result.expected_gap, result.top1_accuracy) == (0, 0, 0)


def test_files_of_retrieval(tmp_path):
  solution, submission = tmp_path / 'solution.csv', tmp_path / 'mine.csv'
  solution.write_text(
    'id,images,Usage\nq1,a b,Public\nq2,c,Private\nq3,None,Ignored\n'
  )
  submission.write_text('id,images\nq1,b x a \nq3,a\n\n"q2",\n')
  truth = landmark_files.read_retrieval_solution(str(solution))
  assert truth.public == {'q1': ['a', 'b']}
  assert truth.private == {'q2': ['c']}
  assert truth.ignored == {'q3'}
  found = landmark_files.read_retrieval_predictions(str(submission))
  assert found == {'q1': ['b', 'x', 'a'], 'q3': ['a']}
  for part, expected in (
    (truth.public, (1 + 2 / 3) / 2),
    (truth.private, 0),
    (truth.both, (1 + 2 / 3) / 4),
  ):
    own = landmark_files.of_part(found, part, truth)
    values = google_landmarks.retrieval(own, part).metrics.values()
    assert list(values) == pytest.approx([expected])
  with pytest.raises(InputError, match="'q9' is no test image"):
    landmark_files.of_part({'q9': []}, truth.public, truth)


def test_files_of_recognition(tmp_path):
  solution, submission = tmp_path / 'solution.csv', tmp_path / 'mine.csv'
  solution.write_text(
    'id,landmarks,Usage\nt1,5 7,Public\nt2,,Public\nt3,9,Private\nt4,,Ignored\n'
  )
  submission.write_text('id,landmarks\nt1,7 0.25\nt2,5 0.5\nt4,1 1\n')
  truth = landmark_files.read_recognition_solution(str(solution))
  assert truth.public == {'t1': [5, 7], 't2': []}
  found = landmark_files.read_recognition_predictions(str(submission))
  own = landmark_files.of_part(found, truth.public, truth)
  assert google_landmarks.recognition(own, truth.public).gap == 0.5


@pytest.mark.parametrize(
  'reader, text, words',
  [
    ('retrieval_solution', 'id,images\na,b\n', "no column 'Usage'"),
    ('retrieval_solution', 'id,images,Usage\n', 'no rows below'),
    ('retrieval_solution', 'id,images,Usage\na,b,Test\n', "Usage is 'Test'"),
    ('retrieval_solution', 'id,images,Usage\na,None,Public\n', 'no images'),
    ('retrieval_solution', 'id,images,Usage\na,b\n', 'line 2: 2 fields'),
    (
      'retrieval_solution',
      'id,images,Usage\na,b,Public\na,c,Private\n',
      "line 3: id 'a' is repeated",
    ),
    (
      'recognition_solution',
      'id,landmarks,Usage\na,5 b,Public\n',
      "line 2: landmarks is '5 b'",
    ),
    ('recognition_predictions', 'id,landmarks\na,5\n', "landmarks is '5'"),
    ('recognition_predictions', 'id,landmarks\na,5 1 2\n', 'is .5 1 2.'),
    ('retrieval_predictions', 'id,images\n\x00', 'line 2: 1 fields|no CSV'),
  ],
)
def test_damaged_files(tmp_path, reader, text, words):
  path = tmp_path / 'file.csv'
  path.write_text(text)
  with pytest.raises(InputError, match=words) as caught:
    getattr(landmark_files, f'read_{reader}')(str(path))
  assert '\n' not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
  path = tmp_path / 'file.csv'
  path.write_text('id,images\na,b c\n', encoding='utf-8-sig')
  found = landmark_files.read_retrieval_predictions(str(path))
  assert found == {'a': ['b', 'c']}


def test_files_that_are_no_text(tmp_path):
  os.mkfifo(tmp_path / 'pipe.csv')
  with pytest.raises(InputError, match='It is a pipe, not a file'):
    landmark_files.read_retrieval_predictions(str(tmp_path / 'pipe.csv'))
  (tmp_path / 'file.csv').write_bytes(b'\xff\xfe\x00')
  for name, words in (('file.csv', 'no CSV file'), ('none.csv', 'No such')):
    with pytest.raises(InputError, match=words):
      landmark_files.read_retrieval_predictions(str(tmp_path / name))
