"""A run measures what its post-processing changes."""

import functools
import json

import jax
import numpy as np
import pytest

from retrieval_jax import metrics, neighbors
from retrieval_jax.core.errors import InputError
from retrieval_jax.training import (
  config_checks,
  dataset_checks,
  loop,
  state,
  steps,
)
from retrieval_jax.training.experiment import make_experiment
from retrieval_jax.training.views import Views

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


def test_views_are_measured_each_alone(make_config):
  config = make_config(
    model__pooling='average',
    eval__flip=True,
    eval__scales=(1.0, 2.0),
    eval__postprocessing=('constant_threshold',),
    eval__constant_threshold__threshold=-1.0,
    eval__list_length=20,
  )
  experiment = make_experiment(config)
  evaluator, tests = experiment.evaluator, experiment.dataset.tests
  stage = experiment.stages[-1]
  variables = stage.task.new_state(stage.optimizer, 0).measured()
  replicated = state.replicate(variables)
  found = evaluator.measure(replicated, tests)
  variants = evaluator.ablate(replicated, found, None)['test']
  group = tests['test']
  images = np.concatenate(
    [s.images_at(np.arange(len(s))) for s in (group.query, group.gallery)]
  )
  whole, doubled = (
    jax.jit(
      functools.partial(
        steps.embed_step,
        task=stage.task._replace(views=Views(scales=(scale,))),
        axis_name=None,
      )
    )
    for scale in (1.0, 2.0)
  )
  mirrored = images[:, :, ::-1]
  one, flipped, large, both = (
    np.asarray(network(variables, seen))
    for network in (whole, doubled)
    for seen in (images, mirrored)
  )
  expected = {
    'one view': one,
    'flip': one + flipped,
    'scales': one + large,
    'flip + scales': one + flipped + large + both,
  }
  assert [(v.views, v.postprocessing) for v in variants] == [
    *((label, ()) for label in expected),
    ('flip + scales', ('constant_threshold',)),
  ]
  values = []
  for variant, rows in zip(variants, expected.values(), strict=False):
    queries, gallery = np.split(rows, [len(group.query)])
    by_hand = metrics.evaluate_lists(
      neighbors.top_k(queries, gallery, 20)[1],
      group.query.labels,
      group.gallery.labels,
    ).metrics
    assert variant.result.metrics == pytest.approx(by_hand, abs=1e-9)
    values.append(by_hand['mean_average_precision_at_20'])
  assert len(set(values)) == 4


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
