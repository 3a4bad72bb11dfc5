import numpy as np
import pyarrow as pa
from absl.testing import absltest, parameterized

from retrieval_jax.data import columns
from retrieval_jax.data.columns import Strings, StringsBuilder

WORDS = ['a', '', 'é/ü.png', 'b' * 300, 'a', '\U0001f600', 'zz']


def _random_words(count, seed=0):
  rng = np.random.default_rng(seed)
  return [
    ''.join(rng.choice(list('abé'), rng.integers(0, 9))) for _ in range(count)
  ]


class StringsTest(parameterized.TestCase):
  def test_gives_back_what_was_packed(self):
    self.assertEqual(list(Strings.of(WORDS)), WORDS)
    self.assertEqual(list(Strings.of([])), [])

  def test_gives_back_names_that_are_not_utf_8(self):
    name = b'caf\xe9.jpg'.decode('utf-8', 'surrogateescape')
    self.assertEqual(list(Strings.of([name])), [name])

  @parameterized.parameters(7, -1)
  def test_refuses_a_row_outside(self, row):
    with self.assertRaisesRegex(IndexError, f'row {row} of 7'):
      Strings.of(WORDS)[row]
    with self.assertRaisesRegex(IndexError, 'of 7'):
      Strings.of(WORDS).take(np.array([0, row]))

  @parameterized.product(
    make=(pa.string, pa.large_string), part=((0, 7), (2, 3), (1, 0), (6, 1))
  )
  def test_takes_arrays_of_arrow_and_slices_of_them(self, make, part):
    array = pa.array(WORDS, make()).slice(*part)
    self.assertEqual(list(Strings.from_arrow(array)), array.to_pylist())

  def test_takes_an_empty_array_of_arrow(self):
    self.assertEqual(list(Strings.from_arrow(pa.array([], pa.string()))), [])
    self.assertEqual(list(Strings.from_arrow(pa.array(['', '']))), ['', ''])

  def test_take_is_that_of_a_list(self):
    words = _random_words(500)
    rows = np.random.default_rng(1).integers(0, 500, 40_000)
    taken = Strings.of(words).take(rows)
    self.assertEqual(list(taken), [words[row] for row in rows.tolist()])
    self.assertEmpty(Strings.of(words).take(np.array([], int)))

  def test_fingerprints_are_equal_where_strings_are(self):
    words = _random_words(40_000) + ['a', 'b', 'ab', 'ba', 'aa', '', 'b' * 999]
    prints = Strings.of(words).fingerprints()
    self.assertEqual(len(set(prints.tolist())), len(set(words)))
    of = {}
    for word, fingerprint in zip(words, prints.tolist(), strict=True):
      self.assertEqual(of.setdefault(word, fingerprint), fingerprint)

  def test_pieces_make_one(self):
    builder = StringsBuilder()
    self.assertEmpty(StringsBuilder().finish())
    words = _random_words(1000)
    for begin in range(0, 1000, 99):
      builder.add(Strings.of(words[begin : begin + 99]))
    builder.add(Strings.of([]))
    self.assertEqual(list(builder.finish()), words)


class ClassOrderTest(parameterized.TestCase):
  @parameterized.parameters(
    (['10', '9', '-3', '0'], ['-3', '0', '9', '10']),
    (['10', '9', 'x'], ['10', '9', 'x']),
    (['10', '09'], ['09', '10']),
    (['b', 'é', 'a', 'B', '\U0001f600'], ['B', 'a', 'b', 'é', '\U0001f600']),
    ([], []),
  )
  def test_integers_by_value_others_by_code_point(self, names, expected):
    order = columns.class_order(names)
    self.assertEqual([names[i] for i in order.tolist()], expected)


class FindDuplicateTest(parameterized.TestCase):
  @parameterized.parameters(
    (['a', 'b', 'c'], None),
    (['a', 'b', 'c', 'b', 'a'], (1, 3)),
    (['', 'x', ''], (0, 2)),
    (['a', 'a', 'a'], (0, 1)),
    ([], None),
    (['ab', 'ba'], None),
  )
  def test_finds_the_first_row_that_repeats(self, words, expected):
    self.assertEqual(columns.find_duplicate(Strings.of(words)), expected)

  def test_rows_that_differ_otherwise_are_no_duplicates(self):
    words = Strings.of(['a', 'a', 'b', 'a'])
    salt = np.array([1, 2, 1, 2], np.uint64)
    self.assertEqual(columns.find_duplicate(words, salt), (1, 3))
    self.assertIsNone(columns.find_duplicate(words, np.arange(4, dtype='u8')))

  def test_one_duplicate_among_many(self):
    words = [str(i) for i in range(50_000)]
    words[43_210] = '17'
    self.assertEqual(columns.find_duplicate(Strings.of(words)), (17, 43_210))


if __name__ == '__main__':
  absltest.main()
