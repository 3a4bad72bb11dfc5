import numpy as np
from absl.testing import absltest, parameterized

from retrieval_jax.core.strings import Strings
from retrieval_jax.data import columns


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
