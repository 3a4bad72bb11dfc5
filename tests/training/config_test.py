"""Every mistake in a config is one line with key, value and cure."""

import pathlib

import ml_collections
import pytest

from retrieval_jax.core.errors import InputError
from retrieval_jax.metrics import protocols
from retrieval_jax.training import config as config_lib
from retrieval_jax.training import config_checks, dataset_checks

CONFIGS = sorted(
  path
  for path in (pathlib.Path(__file__).parents[2] / 'configs').glob('*.py')
  if path.stem not in ('default', '__init__')
)
# What comes after the colon, where it is not the data.
_LOSSES = ('', ':triplet_margin', ':arcface', ':cosface')
_ARGUMENTS = {
  'zero_shot': _LOSSES,
  'fine_tuning': _LOSSES,
  **dict.fromkeys(protocols.zero_shot.BENCHMARKS, (*_LOSSES, ':proxy_anchor')),
  **dict.fromkeys(
    ('harry_mnist', 'harry_small', 'harry_landmarks'), ('', ':circle')
  ),
}


@pytest.mark.parametrize(
  'config',
  [
    f'{path}{argument}'
    for path in CONFIGS
    for argument in _ARGUMENTS.get(path.stem, ('', ':mnist', ':fashion_mnist'))
  ],
  ids=lambda config: pathlib.Path(config).name,
)
def test_every_config_validates(config):
  config_checks.validate(config_lib.load(config))


def test_arguments_that_harry_does_not_take():
  path = CONFIGS[0].with_name('harry_landmarks.py')
  with pytest.raises(InputError, match="'stage2' is no loss of Harry: arcface"):
    config_lib.load(f'{path}:stage2')


@pytest.mark.parametrize(
  'key, text, words',
  [
    ('data.batch_size', '0', 'at least 1'),
    ('data.batch_size', '-32', 'at least 1'),
    ('num_epochs', '0', 'at least 1'),
    ('num_train_steps', '-5', 'at least 1'),
    ('log_every_steps', '0', 'at least 1'),
    ('seed', '-1', 'an integer from 0'),
    ('optimizer.learning_rate', 'nan', 'above 0'),
    ('optimizer.learning_rate', 'inf', 'above 0'),
    ('optimizer.learning_rate', '0', 'above 0'),
    ('optimizer.weight_decay', '-0.1', 'at least 0'),
    ('optimizer.clip_norm', '-1.0', 'above 0'),
    ('optimizer.head_learning_rate_multiplier', '0', 'above 0'),
    ('model.embedding_dim', '0', 'at least 1'),
    ('data.std', '(0.0,)', 'above 0'),
    ('data.mean', '(0.1, 0.2)', '1 or 3'),
    ('eval.metrics', '()', 'a tuple of names'),
    ('eval.memory_budget_mb', '0', 'above 0'),
    ('loss.margin', 'nan', 'loss.margin'),
    ('loss.scale', '-80.0', 'loss.scale'),
    ('loss.scale', '0.0', 'loss.scale'),
    ('loss.name', 'cirle', "did you mean 'circle'"),
    ('data.name', 'mnist_5', "did you mean 'mnist_5k'"),
    ('model.name', 'convnett', "did you mean 'convnet'"),
    ('model.pooling', 'gen', 'allowed is one of average, max'),
    ('model.neck', 'bneck', 'allowed is one of identity, dense'),
    ('model.gem.p', '0.5', 'at least 1 and at most 10'),
    ('model.remat', 'True', "not an option of 'convnet'"),
    ('eval.pooling', 'gen', "did you mean 'gem'"),
    ('eval.pooling', 'class_token', 'has no class token'),
    ('eval.gem_p', '4.6', "None with the pooling 'flatten'"),
    ('eval.scale_pooling', 'median', "'mean' or 'max'"),
    ('eval.scale_pooling', 'max', 'several eval.scales'),
    ('optimizer.name', 'adamv', "did you mean 'adamw'"),
    ('optimizer.frozen', '("a(",)', 'regular expressions'),
    ('optimizer.layer_decay', '0.0', '(0, 1]'),
    ('optimizer.ema_decay', '1.0', '(0, 1)'),
    ('optimizer.accumulate_steps', '0', 'at least 1'),
    ('head.init', 'class_mean', "'normal' without a loss against proxies"),
    ('head.init', 'mean', "'normal' or 'class_mean'"),
    ('optimizer.schedule', 'cosin', "did you mean 'cosine'"),
    ('eval.metrics', "('precision_at_one',)", "did you mean 'precision_at_1'"),
    ('data.classes_per_batch', '32', 'one image a class'),
  ],
)
def test_bad_values(key, text, words):
  config = config_lib.load(str(CONFIGS[0].with_name('circle.py')))
  config_lib.override(config, key, text)
  with pytest.raises(InputError) as error:
    config_checks.validate(config)
  message = str(error.value)
  assert key in message
  assert words in message
  assert '\n' not in message


def test_phases_are_whole_updates():
  config = config_lib.load(str(CONFIGS[0].with_name('circle.py')))
  config.optimizer.accumulate_steps = 4
  config.optimizer.head_only_steps = 10
  with pytest.raises(InputError, match='head_only_steps is 10; .*steps=8'):
    config_checks.validate(config)
  config.optimizer.head_only_steps = 0
  config.num_train_steps = 3
  with pytest.raises(InputError, match='accumulate_steps is 4; .*nothing is'):
    config_checks.validate(config)


@pytest.mark.parametrize(
  'loss, key, value, words',
  [
    # What a loss itself refuses is said before the data are loaded.
    ('magface', 'loss.norm_max', 1.0, 'above loss.norm_min, 10.0'),
    ('dynamic_margin', 'loss.margin_min', 0.7, 'at least loss.margin_min, 0.7'),
    ('histogram', 'loss.delta', 0.3, 'loss.n_bins to 7'),
    ('large_margin_softmax', 'loss.sub_centers', 3, 'allowed is 1'),
    ('fast_ap', 'loss.num_bins', 0, 'an integer of at least 1'),
    ('fast_ap', 'loss.distance', {'name': 'lp', 'p': 1.0}, 'allowed are 2'),
    # Of classes or of a fixed set of pairs, and not one an anchor.
    ('proxy_anchor', 'loss.class_weights', (1.0, 2.0), 'not one an anchor'),
    ('histogram', 'loss.class_weights', (1.0, 2.0), 'not one an anchor'),
    ('instance', 'miner.name', 'batch_hard', 'losses that take a miner'),
    ('instance', 'memory.size', 64, "0 for loss 'instance'"),
    ('manifold', 'memory.size', 64, "0 for loss 'manifold'"),
    ('arcface', 'memory.size', 64, 'compare no images'),
  ],
)
def test_what_a_loss_does_not_take(loss, key, value, words):
  config = config_lib.load(f'{CONFIGS[0].with_name("zero_shot.py")}:{loss}')
  section, name = key.split('.')
  with config.unlocked():
    config[section][name] = value
  with pytest.raises(InputError) as error:
    config_checks.validate(config)
  message = str(error.value)
  assert words in message
  assert '\n' not in message


def test_batch_has_to_divide_by_the_devices():
  config = config_lib.load(str(CONFIGS[0].with_name('circle.py')))
  config_lib.override(config, 'data.batch_size', '30')
  with pytest.raises(InputError, match='multiple of the 4 devices.*=32'):
    config_checks.validate(config, num_devices=4)


def test_overrides_are_checked_against_what_is_there():
  config = config_lib.load(str(CONFIGS[0].with_name('circle.py')))
  with pytest.raises(InputError, match="did you mean 'data.batch_size'"):
    config_lib.override(config, 'data.batchsize', '3')
  with pytest.raises(InputError, match='Known: '):
    config_lib.override(config, 'data', '3')
  with pytest.raises(InputError, match=r'num_epochs is .1\.5.* type int'):
    config_lib.override(config, 'num_epochs', '1.5')
  with pytest.raises(InputError, match='num_epochs.*type int'):
    config_lib.override(config, 'num_epochs', 'ten')
  config_lib.override(config, 'optimizer.clip_norm', '1')
  config_lib.override(config, 'miner.name', 'None')
  config_lib.override(config, 'data.mean', '0.5')
  config_lib.override(config, 'data.dir', '7')
  assert config.optimizer.clip_norm == 1.0
  assert config.miner.name is None
  assert config.data.mean == (0.5,)
  assert config.data.dir == '7'


@pytest.mark.parametrize(
  'text, words',
  [
    ('x = 1', 'AttributeError'),
    ('def get_config(arg=None):\n  return {}', 'ConfigDict'),
    ('def get_config(arg=None):\n  raise KeyError("no")', 'KeyError'),
    ('def get_config(:', 'SyntaxError'),
    ('import not_a_module_of_mine', 'not_a_module_of_mine'),
  ],
)
def test_broken_config_files(tmp_path, text, words):
  path = tmp_path / 'mine.py'
  path.write_text(text)
  with pytest.raises(InputError, match=words) as error:
    config_lib.load(str(path))
  assert '\n' not in str(error.value)


def test_missing_config_file_names_the_nearest():
  with pytest.raises(InputError, match='did you mean .*circle.py'):
    config_lib.load(str(CONFIGS[0].with_name('circel.py')))


def test_missing_and_unknown_keys_of_own_configs():
  config = config_lib.load(str(CONFIGS[0].with_name('circle.py'))).unlock()
  del config.eval.batch_size
  with pytest.raises(InputError, match='eval.batch_size is missing'):
    config_checks.validate(config)
  config = config_lib.load(str(CONFIGS[0].with_name('circle.py'))).unlock()
  config.optimizer.learningrate = 0.1
  with pytest.raises(InputError, match='optimizer.learning_rate'):
    config_checks.validate(config)
  config = config_lib.load(str(CONFIGS[0].with_name('circle.py'))).unlock()
  config.loss.margn = 0.1
  with pytest.raises(InputError, match="loss.margn.*did you mean 'margin'"):
    config_checks.validate(config)


def test_mean_has_to_fit_the_channels(make_config, tiny_dataset):
  config = make_config(data__mean=(0.1, 0.2, 0.3))
  with pytest.raises(InputError, match='data.mean has 3 numbers.* 1 or 1'):
    dataset_checks.validate_dataset(config, tiny_dataset)


def test_json_round_trip(make_config):
  config = make_config('arcface')
  again = config_lib.from_json(config_lib.to_json(config))
  assert isinstance(again, ml_collections.ConfigDict)
  assert again.to_dict() == config.to_dict()
  assert config_lib.differing_keys(config, again) == []


def test_differing_keys_leave_out_what_may_differ(make_config):
  one = make_config()
  other = make_config(log_every_steps=5, eval__batch_size=32, seed=3)
  assert config_lib.differing_keys(one, other) == ['seed']


def test_class_weights_have_to_fit_the_classes(make_config, tiny_dataset):
  config = make_config('cosface', loss__class_weights=(1.0, 2.0))
  with pytest.raises(InputError, match='has 2 numbers; .* each of the 10'):
    dataset_checks.validate_dataset(config, tiny_dataset)
  for weights in ((1.0,) * 10, 'inverse_log'):
    config = make_config('cosface', loss__class_weights=weights)
    dataset_checks.validate_dataset(config, tiny_dataset)
