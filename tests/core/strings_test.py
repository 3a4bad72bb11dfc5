import numpy as np
import pyarrow as pa
from absl.testing import absltest, parameterized

from retrieval_jax.core.strings import Strings, StringsBuilder

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


if __name__ == '__main__':
  absltest.main()
