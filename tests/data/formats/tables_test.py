import csv
import gzip
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
from absl.testing import absltest, parameterized
from pyarrow import parquet

from retrieval_jax.core.errors import InputError
from retrieval_jax.data.collection import TEST, TRAIN, VALIDATION
from retrieval_jax.data.formats import table_columns, table_files, tables

NAN = float('nan')
_ROOT = pathlib.Path(__file__).parents[3]


class _TableTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    # One that exists: a root without any image is refused.
    (self.root / 'a.jpg').touch()

  def _csv(self, content, name='t.csv'):
    content = content if isinstance(content, bytes) else content.encode()
    (self.root / name).write_bytes(content)
    return str(self.root / name)

  def _parquet(self, **columns):
    file = str(self.root / 't.parquet')
    parquet.write_table(pa.table(columns), file)
    return file

  def _load(self, content, **options):
    return tables.table(file=self._csv(content), **options)

  def _refused(self, message, file, **options):
    with self.assertRaisesRegex(InputError, message) as caught:
      tables.table(file=str(file), **options)
    self.assertNotIn('\n', str(caught.exception))


class TableTest(_TableTest):
  def test_reads_all_columns_of_the_field(self):
    found = self._load(
      'x_1,x_2,y_1,y_2,path,label,split,is_query,is_gallery,category,sequence,'
      'vendor\n'
      '1,5.5,2,6,a.jpg,20,train,,,shoe,7,x\n'
      ',,,,b.jpg,3,test,True,False,,,y\n'
      ',,,,c.jpg,3,test,0,1,hat,9,x\n',
      domain_column='vendor',
    )
    self.assertEqual(list(found.images.paths), ['a.jpg', 'b.jpg', 'c.jpg'])
    self.assertEqual(found.images.root, str(self.root))
    self.assertEqual(found.labels.tolist(), [1, 0, 0])
    self.assertEqual(found.labels.dtype, np.int32)
    self.assertEqual(found.class_names, ('3', '20'))
    self.assertEqual(found.split.tolist(), [TRAIN, TEST, TEST])
    self.assertEqual(found.split.dtype, np.int8)
    self.assertEqual(found.is_query.tolist(), [False, True, False])
    self.assertEqual(found.is_gallery.tolist(), [False, False, True])
    np.testing.assert_array_equal(
      found.boxes, np.float32([[1, 2, 5.5, 6], [NAN] * 4, [NAN] * 4])
    )
    self.assertEqual(found.boxes.dtype, np.float32)
    self.assertEqual(found.category.tolist(), [1, -1, 0])
    self.assertEqual(found.category_names, ('hat', 'shoe'))
    self.assertEqual(found.sequence.tolist(), [0, -1, 1])
    self.assertEqual(found.domain.tolist(), [0, 1, 0])
    self.assertEqual(found.domain_names, ('x', 'y'))
    self.assertIsNone(found.label_sets)
    self.assertEqual(found.name, 't')

  def test_columns_that_are_missing_or_empty_are_unknown(self):
    for found in (
      self._load('label,path\nx,a.jpg\ny,b.jpg\n'),
      self._load(
        'label,path,is_query,is_gallery,category,sequence,x_1,y_1,x_2,y_2\n'
        'x,a.jpg,,,,,,,,\ny,b.jpg,,,,,,,,\n'
      ),
    ):
      for name in ('split', 'is_query', 'is_gallery', 'boxes', 'domain'):
        self.assertIsNone(getattr(found, name), name)
      self.assertIsNone(found.category)
      self.assertIsNone(found.sequence)

  def test_parquet_says_the_same_as_csv(self):
    columns = {
      'path': ['a.jpg', 'b.jpg', 'c.jpg'],
      'label': [7, 5, 7],
      'split': ['train', 'test', 'test'],
      'is_query': [None, True, False],
      'is_gallery': [None, True, True],
      'x_1': [1.0, NAN, None],
      'y_1': [2.0, NAN, None],
      'x_2': [3.0, NAN, None],
      'y_2': [4.5, NAN, None],
      'category': pa.array(['u', 'v', None]).dictionary_encode(),
      'sequence': [1.0, 12.0, NAN],
      'other': [[1], [2], [3]],
    }
    found = tables.table(file=self._parquet(**columns))
    expected = self._load(
      'path,label,split,is_query,is_gallery,x_1,y_1,x_2,y_2,category,sequence\n'
      'a.jpg,7,train,,,1,2,3,4.5,u,1\n'
      'b.jpg,5,test,true,true,,,,,v,12\n'
      'c.jpg,7,test,false,true,,,,,,\n'
    )
    self.assertEqual(list(found.images.paths), list(expected.images.paths))
    self.assertEqual(found.class_names, expected.class_names)
    self.assertEqual(found.category_names, expected.category_names)
    for name in ('labels', 'split', 'is_query', 'is_gallery', 'boxes',
                 'category', 'sequence'):  # fmt: skip
      np.testing.assert_array_equal(
        getattr(found, name), getattr(expected, name), name
      )

  def test_a_table_of_many_pieces_is_as_a_loop_says(self):
    rng = np.random.default_rng(0)
    rows = [
      (f'a/{i}.jpg' if i else 'a.jpg', f'c {rng.integers(40_000)}', x)
      for i, x in enumerate(rng.choice(['u', 'v', ''], 150_000).tolist())
    ]
    file = self.root / 'many.csv'
    with open(file, 'w', newline='') as content:
      writer = csv.writer(content)
      writer.writerow(['path', 'label', 'category'])
      writer.writerows(rows)
    self.assertGreater(file.stat().st_size, 2 * table_files._BLOCK_BYTES)
    found = tables.table(file=file)
    names = sorted({label for _, label, _ in rows})
    number = {name: i for i, name in enumerate(names)}
    self.assertEqual(found.class_names, tuple(names))
    np.testing.assert_array_equal(
      found.labels, [number[label] for _, label, _ in rows]
    )
    np.testing.assert_array_equal(
      found.category, [{'u': 0, 'v': 1, '': -1}[x] for *_, x in rows]
    )
    self.assertEqual(list(found.images.paths), [path for path, *_ in rows])
    packed = self.root / 'many.csv.gz'
    packed.write_bytes(gzip.compress(file.read_bytes(), 1))
    again = tables.table(file=packed)
    np.testing.assert_array_equal(again.labels, found.labels)
    columns = zip(*rows, strict=True)
    again = tables.table(
      file=self._parquet(
        **dict(zip(('path', 'label', 'category'), columns, strict=True))
      )
    )
    np.testing.assert_array_equal(again.labels, found.labels)
    self.assertEqual(again.images.paths[149_999], 'a/149999.jpg')

  @parameterized.parameters(
    (['10', '9'], ('9', '10')), (['x10', 'x9'], ('x10', 'x9')),
    (['007', '7'], ('007', '7')), (['b', '1'], ('1', 'b')),
  )  # fmt: skip
  def test_labels_are_numbered_by_value_or_by_name(self, labels, names):
    found = self._load(f'path,label\na.jpg,{labels[0]}\nb.jpg,{labels[1]}\n')
    self.assertEqual(found.class_names, names)
    self.assertEqual([names[i] for i in found.labels.tolist()], labels)

  def test_several_labels_in_a_field(self):
    found = self._load(
      'path,label\na.jpg,9|10\nb.jpg,10\nc.jpg,3 | 9|10\n', label_separator='|'
    )
    self.assertEqual(found.class_names, ('3', '9', '10'))
    self.assertEqual(
      found.label_sets.tolist(), [[1, 2, -1], [2, -1, -1], [0, 1, 2]]
    )
    self.assertEqual(found.labels.tolist(), [1, 2, 0])

  def test_without_test_rows_validation_is_the_test_set(self):
    found = self._load('path,label,split\na.jpg,1,train\nb.jpg,1,validation\n')
    self.assertEqual(found.split.tolist(), [TRAIN, TEST])

  def test_beside_test_rows_validation_stays(self):
    found = self._load('path,label,split\na.jpg,1,val\nb.jpg,1,Test\n')
    self.assertEqual(found.split.tolist(), [VALIDATION, TEST])

  def test_paths_are_relative_to_the_root_in_whatever_form(self):
    (self.root / 'x').mkdir()
    paths = ['./a.jpg', 'x/../b.jpg', 'x//c.jpg', str(self.root / 'd.jpg')]
    rows = ''.join(f'{path},1\n' for path in paths)
    found = self._load('path,label\n' + rows)
    self.assertEqual(
      list(found.images.paths), ['a.jpg', 'b.jpg', 'x/c.jpg', 'd.jpg']
    )

  def test_the_root_may_be_elsewhere(self):
    other = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (other / 'z.jpg').touch()
    found = self._load('path,label\nz.jpg,1\n', dir=str(other))
    self.assertEqual(found.images.describe(0), str(other / 'z.jpg'))

  def test_one_image_may_have_many_boxes(self):
    found = self._load(
      'path,label,x_1,y_1,x_2,y_2\n'
      'a.jpg,1,0,0,5,5\na.jpg,2,0,0,5,6\na.jpg,3,,,,\n'
    )
    self.assertLen(found, 3)

  @parameterized.parameters(';', '\t', ',', '|')
  def test_the_header_tells_the_separator(self, mark):
    rows = 'path,label,split\na.jpg,x,train\nb.jpg,y,test\n'
    found = self._load(rows.replace(',', mark))
    self.assertEqual(found.class_names, ('x', 'y'))

  def test_tsv_is_read(self):
    file = self._csv('path\tlabel\na.jpg\tx,y\n', 't.tsv')
    self.assertEqual(tables.table(file=file).class_names, ('x,y',))

  @parameterized.parameters('utf-8', 'utf-8-sig', 'utf-16')
  def test_marked_encodings_need_no_name(self, encoding):
    found = self._load('path,label\na.jpg,é\nb.jpg,ü\n'.encode(encoding))
    self.assertEqual(found.class_names, ('é', 'ü'))

  @parameterized.parameters('latin-1', 'cp1252', 'UTF8', 'utf-16-le')
  def test_other_encodings_are_named(self, encoding):
    found = self._load(
      'path,label\na.jpg,é\nb.jpg,ü\n'.encode(encoding), encoding=encoding
    )
    self.assertEqual(found.class_names, ('é', 'ü'))

  def test_quotes_line_ends_and_blank_lines(self):
    found = self._load(
      '\n"path", label \r\na.jpg,"x, y"\r\n\r\n"b ""2"".jpg","z\nz"\r\n'
    )
    self.assertEqual(list(found.images.paths), ['a.jpg', 'b "2".jpg'])
    self.assertLen(found.class_names, 2)
    self.assertIn('x, y', found.class_names)
    found = self._load('path,label\na.jpg,"z\nz"\nb.jpg,u')
    self.assertEqual(found.class_names, ('u', 'z\nz'))

  def test_unknown_columns_are_passed_over_and_misspelt_ones_named(self):
    with self.assertLogs(level='WARNING') as logs:
      found = self._load('path,label,is_gallary,price\na.jpg,1,1,5\n')
    self.assertIsNone(found.is_gallery)
    self.assertLen(logs.output, 1)
    self.assertIn("'is_gallary' is passed over; did you mean 'is_gallery'?",
                  logs.output[0])  # fmt: skip

  def test_the_domain_may_be_a_column_with_another_meaning(self):
    found = self._load(
      'path,label,category\na.jpg,1,u\nb.jpg,2,v\n', domain_column='category'
    )
    self.assertEqual(found.domain.tolist(), found.category.tolist())

  def test_tensorflow_stays_out(self):
    file = self._csv('path,label\na.jpg,1\n')
    # In another process, where nothing else has imported it.
    program = (
      'import sys; from retrieval_jax.data.formats import tables\n'
      f'tables.table(file={file!r})\n'
      'print("tensorflow" in sys.modules)'
    )
    result = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True, cwd=_ROOT
    )
    self.assertEqual(result.stdout.strip(), 'False', result.stderr)

  @parameterized.parameters('path,label', 'path,label\n', 'path,label\n\n\n')
  def test_refuses_a_header_alone(self, content):
    self._refused('no rows below its header', self._csv(content))

  @parameterized.parameters(b'', b'\n\n', b'\xef\xbb\xbf')
  def test_refuses_an_empty_file(self, content):
    self._refused("t.csv' is empty; allowed is a header", self._csv(content))

  def test_refuses_a_parquet_file_without_rows(self):
    file = self._parquet(
      path=pa.array([], pa.string()), label=pa.array([], pa.int64())
    )
    self._refused('has no rows below', file)

  @parameterized.named_parameters(
    ('no_path', 'label,image_path\n1,a.jpg\n',
     "data.file: .*t.csv' has no column 'path'.*did you mean 'image_path'"),
    ('no_label', 'path,class\na.jpg,1\n',
     "no column 'label'; its columns are path, class: rename a column"),
    ('twice', 'path,label,label\na.jpg,1,2\n', "has 2 columns 'label'"),
    ('path_empty', 'path,label\na.jpg,1\n,2\n', 'row 3: path is empty'),
    ('label_empty', 'path,label\na.jpg,1\nb.jpg, \n', 'row 3: label is empty'),
    ('split', 'path,label,split\na.jpg,1,trian\n',
     "row 2: split is 'trian'; allowed are train, validation, val, test"),
    ('split_empty', 'path,label,split\na.jpg,1,train\nb.jpg,1,\n',
     'row 3: split is empty'),
    ('flag', 'path,label,is_query\na.jpg,1,maybe\n',
     "row 2: is_query is 'maybe'; allowed are true"),
    ('box', 'path,label,x_1,x_2,y_1,y_2\na.jpg,1,left,2,3,4\n',
     "row 2: x_1 is 'left'; allowed are finite numbers"),
    ('box_nan', 'path,label,x_1,x_2,y_1,y_2\na.jpg,1,nan,2,3,4\n',
     "row 2: x_1 is 'nan'"),
    ('box_infinite', 'path,label,x_1,x_2,y_1,y_2\na.jpg,1,1,inf,3,4\n',
     "row 2: x_2 is 'inf'"),
    ('box_comma', 'path;label;x_1;x_2;y_1;y_2\na.jpg;1;1,5;2;3;4\n',
     "row 2: x_1 is '1,5'.*with a decimal point"),
    ('box_three', 'path,label,x_1,x_2,y_1,y_2\na.jpg,1,1,2,3,\n',
     'row 2: y_2 is empty; allowed are all of'),
    ('box_turned', 'path,label,x_1,x_2,y_1,y_2\na.jpg,1,2,2,3,4\n',
     'row 2: x_1 is 2.0; allowed is at least 0 and less than x_2, here 2'),
    ('box_negative', 'path,label,x_1,x_2,y_1,y_2\na.jpg,1,2,3,-3,4\n',
     'row 2: y_1 is -3.0; allowed is at least 0'),
    ('box_columns', 'path,label,x_1,x_2\na.jpg,1,1,2\n',
     'of the columns of boxes only x_1, x_2; allowed are all'),
    ('outside', 'path,label\na.jpg,1\n../b.jpg,1\n',
     r"row 3: path is '../b.jpg'; allowed are paths of images in .* outside"),
    ('outside_within', 'path,label\nx/../../b.jpg,1\n', 'row 2: path is'),
    ('absolute', 'path,label\n/etc/b.jpg,1\n', "row 2: path is '/etc/b.jpg'"),
    ('drive', 'path,label\nC:\\x\\b.jpg,1\n', 'row 2: path is .*outside'),
    ('root', 'path,label\n.,1\n', "row 2: path is '.'"),
    ('nul', 'path,label\na.jpg,1\nb\0.jpg,1\n',
     r"row 3: path is 'b\\x00.jpg'; allowed are paths without NUL"),
    ('twice_same_path', 'path,label\na.jpg,1\nb.jpg,2\n./a.jpg,3\n',
     "row 4: path 'a.jpg' stands in row 2 too; allowed is an image once"),
    ('twice_same_box', 'path,label,x_1,x_2,y_1,y_2\n'
     'a.jpg,1,1,2,3,4\na.jpg,2,1,2,3,5\na.jpg,3,1,2,3,4\n',
     "row 4: path 'a.jpg' stands in row 2 too"),
    ('twice_whole', 'path,label,x_1,x_2,y_1,y_2\n'
     'b.jpg,1,1,2,3,4\na.jpg,2,,,,\na.jpg,3,,,,\n',
     "row 4: path 'a.jpg' stands in row 3 too"),
    ('more_fields', 'path,label\na.jpg,1\nb.jpg,1,2\n',
     r'row 3: has 3 fields \(b.jpg,1,2\); allowed are 2'),
    ('fewer_fields', 'path,label\na.jpg,1\nb.jpg\n', 'row 3: has 1 fields'),
    ('open_quote', 'path,label\na.jpg,1\n"b.jpg,1\nc.jpg,1\n',
     'row 3: has 1 fields'),
    ('latin_1', 'path,label\na.jpg,1\nb.jpg,é\n'.encode('latin-1'),
     'row 3: holds bytes that are not utf-8; .* data.encoding'),
    ('latin_1_header', 'path,label,é\na.jpg,1,2\n'.encode('latin-1'),
     'row 1: holds bytes that are not utf-8'),
    ('utf_16_unmarked', 'path,label\na.jpg,1\n'.encode('utf-16-le'),
     "no column 'path'"),
    ('nothing_exists', 'path,label\nx/b.jpg,1\nc.jpg,1\n',
     'none of the first 2 images exists, tried .*/x/b.jpg.*correct data.dir'),
    ('backslashes', 'path,label\nx\\b.jpg,1\n', 'tried .*with / instead of'),
  )  # fmt: skip
  def test_refuses(self, content, message):
    self._refused(message, self._csv(content))

  @parameterized.named_parameters(
    ('separator', {'label_separator': ''}, "data.label_separator is ''"),
    ('separator_empty', {'label_separator': '|'},
     r"row 2: label is '1\|\|2'; allowed are labels separated by '\|'"),
    ('domain', {'domain_column': 'vendr'},
     "data.domain_column: .* no column 'vendr' .did you mean 'vendor'"),
    ('domain_empty', {'domain_column': 'vendor'}, 'row 3: vendor is empty'),
    ('encoding', {'encoding': 'utf-9'}, "data.encoding is 'utf-9'.*unknown"),
    ('dir', {'dir': '/nowhere/at/all'}, "data.dir is '/nowhere/at/all'.*'/'"),
  )  # fmt: skip
  def test_refuses_options(self, options, message):
    file = self._csv('path,label,vendor\na.jpg,1||2,x\nb.jpg,1,\n')
    self._refused(message, file, **options)

  @parameterized.parameters(
    ('88000.jpg,1,trian,,,,,', 'row 88002: split'),
    (',1,train,,,,,', 'row 88002: path is empty'),
    ('b\0.jpg,1,train,,,,,', 'row 88002: path is .*NUL'),
    ('../b.jpg,1,train,,,,,', r"row 88002: path is '../b"),
    ('88000.jpg,,train,,,,,', 'row 88002: label is empty'),
    ('88000.jpg,1,train,x,,,,', 'row 88002: is_query'),
    ('88000.jpg,1,train,,x,2,3,4', 'row 88002: x_1'),
    ('88000.jpg,1,train,,1,2,3,', 'row 88002: y_2 is empty'),
    ('88000.jpg,1,train,,4,2,3,4', 'row 88002: x_1 is 4'),
    ('88000.jpg,1|,train,,,,,', 'row 88002: label', '|'),
    ('88000.jpg,é,train,,,,,', 'row 88002: holds bytes that are not utf-8'),
    ('88000.jpg,1', 'row 88002: has 2 fields'),
    ('17.jpg,1,train,,,,,', "row 88002: path '17.jpg' stands in row 19 too"),
  )
  def test_counts_the_rows_of_all_pieces(self, row, message, separator=None):
    rows = [f'{i}.jpg,{i % 7},train,,,,,\n' for i in range(90_000)]
    rows[88_000] = row + '\n'
    content = 'path,label,split,is_query,x_1,y_1,x_2,y_2\n' + ''.join(rows)
    self.assertGreater(len(content), 1.5 * table_files._BLOCK_BYTES)
    file = self._csv(content.encode('latin-1'))
    self._refused(message, file, label_separator=separator)

  def test_refuses_a_row_without_end_and_says_about_where(self):
    rows = [f'{i}.jpg,{i}\n' for i in range(400_000)]
    rows[200_000] = '200000.jpg,"x\n'
    with self.assertRaisesRegex(
      InputError, 'longer than 1 MiB.*quote'
    ) as caught:
      self._load('path,label\n' + ''.join(rows))
    row = int(re.search(r'row (\d+) or below', str(caught.exception))[1])
    self.assertBetween(row, 100_000, 200_002)

  def test_refuses_a_file_that_is_not_there(self):
    self._refused("data.file is .*x.csv', which does not exist",
                  self.root / 'x.csv')  # fmt: skip
    self._refused('which is a folder', self.root)

  def test_refuses_other_kinds_of_files(self):
    self._refused('allowed are files that end in .csv', self._csv('', 'x.xlsx'))

  def test_refuses_damaged_files(self):
    file = pathlib.Path(self._parquet(path=['a.jpg'], label=[1]))
    file.write_bytes(file.read_bytes()[:-30])
    self._refused("t.parquet' cannot be read", file)
    packed = gzip.compress(b'path,label\n' + b'a.jpg,1\n' * 9)
    self._refused('cannot be read', self._csv(packed[:-12], 'x.csv.gz'))
    self._refused('cannot be read', self._csv(b'path,label', 'y.csv.gz'))

  def test_refuses_columns_of_other_types(self):
    file = self._parquet(path=['a.jpg'], label=[[1, 2]])
    self._refused('column label holds list<.*allowed are strings', file)
    file = self._parquet(path=['a.jpg', None], label=[1, 2])
    self._refused("t.parquet', row 2: path is empty", file)


class CategoriesTest(parameterized.TestCase):
  @parameterized.parameters(1, 7, 1000)
  def test_pieces_of_any_size_give_the_same(self, size):
    rng = np.random.default_rng(0)
    words = [str(w) for w in rng.integers(0, 500, 3000)]
    words[5] = None
    place = table_columns.Place('t.csv', 'label', 2)
    reader = table_columns.Categories(place, allow_empty=True)
    with self.subTest('looked up often'):
      table_columns._LEAST_ROWS, kept = 64, table_columns._LEAST_ROWS
      try:
        for begin in range(0, 3000, size):
          part = pa.array(words[begin : begin + size], pa.string())
          reader.add(part, begin)
        codes, names = reader.finish()
      finally:
        table_columns._LEAST_ROWS = kept
    self.assertEqual(list(names), sorted(names, key=int))
    found = [None if code < 0 else names[code] for code in codes.tolist()]
    self.assertEqual(found, words)


if __name__ == '__main__':
  absltest.main()
