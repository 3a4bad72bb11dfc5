"""A run measures what its post-processing changes."""

import json

import pytest

from retrieval_jax.core.errors import InputError
from retrieval_jax.training import config_checks, dataset_checks, loop

pytestmark = pytest.mark.usefixtures('no_drawings')

CHAIN = ('pca_whitening', 'constant_threshold')


def test_results_hold_each_alone_and_all_together(
  make_config, tmp_path, capsys
):
  config = make_config(
    'circle',
    num_train_steps=2,
    eval__postprocessing=CHAIN,
    eval__list_length=20,
    data__validation='images',
  )
  found = loop.train_and_evaluate(config, str(tmp_path / 'run'))
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert set(results['ablation']) == {'validation', 'test'}
  variants = results['ablation']['test']
  assert [v['postprocessing'] for v in variants] == [
    [],
    ['pca_whitening'],
    ['constant_threshold'],
    ['pca_whitening', 'constant_threshold'],
  ]
  # The metrics of the run stay those of the embeddings as they are.
  without = variants[0]['metrics']
  for name in ('precision_at_1', 'mean_average_precision_at_r'):
    assert without[name] == pytest.approx(found[name], abs=1e-6)
  assert variants[0]['protocol']['list_length'] == 20
  assert variants[1]['metrics'] != without
  assert '| pca_whitening + constant_threshold |' in capsys.readouterr().out


@pytest.mark.parametrize(
  'overrides, words',
  [
    ({'eval__postprocessing': ('k_reciprocl',)}, "did you mean 'k_reciprocal'"),
    (
      {'eval__postprocessing': ('diffusion', 'superglobal')},
      'eval.postprocessing has .*one of them',
    ),
    ({'eval__diffusion__kd': 0}, 'eval.diffusion.kd is 0; .*at least 1'),
    ({'eval__diffusion__alpha': 1.5}, 'eval.diffusion.alpha is 1.5'),
    ({'eval__list_length': 0}, 'eval.list_length is 0'),
  ],
)
def test_mistakes_in_a_config(make_config, overrides, words):
  with pytest.raises(InputError, match=words):
    config_checks.validate(make_config(**overrides))


@pytest.mark.parametrize(
  'name, words',
  [
    ('diffusion', 'eval.diffusion.truncation is 1000; allowed is at most 80'),
    ('pca_whitening', 'eval.pca_whitening.dim is 51; allowed is at most 50'),
    ('k_reciprocal', 'eval.list_length is 100; allowed is at most 80'),
  ],
)
def test_sizes_are_checked_with_the_data(
  make_config, tiny_dataset, name, words
):
  config = make_config(
    eval__postprocessing=(name,),
    eval__pca_whitening__dim=51,
    eval__list_length=100 if name == 'k_reciprocal' else 10,
  )
  with pytest.raises(InputError, match=words):
    dataset_checks.validate_dataset(config, tiny_dataset)
