"""The keys that every config has, and what each may hold."""

import math
import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from retrieval_jax import neighbors


class Rule(NamedTuple):
  """What one key may hold: a test of the value, and its words."""

  allowed: str
  holds: Callable[[Any], bool]


def _is_int(value) -> bool:
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value) -> bool:
  return (
    isinstance(value, numbers.Real)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


def _is_pattern(value) -> bool:
  try:
    re.compile(value)
  except (re.error, TypeError):
    return False
  return isinstance(value, str)


def _optional(rule: Rule) -> Rule:
  return Rule(f'{rule.allowed}, or None', lambda v: v is None or rule.holds(v))


def _one_of(*words: str) -> Rule:
  return Rule(' or '.join(map(repr, words)), lambda v: v in words)


_COUNT = Rule('an integer of at least 1', lambda v: _is_int(v) and v >= 1)
_NATURAL = Rule('an integer of at least 0', lambda v: _is_int(v) and v >= 0)
_POSITIVE = Rule('a finite number above 0', lambda v: _is_real(v) and v > 0)
_NONNEGATIVE = Rule(
  'a finite number of at least 0', lambda v: _is_real(v) and v >= 0
)
_REAL = Rule('a finite number', _is_real)
_TEXT = Rule('a string', lambda v: isinstance(v, str))
_FLAG = Rule('True or False', lambda v: isinstance(v, bool))
_SHARE = Rule('a number in [0, 1]', lambda v: _is_real(v) and 0 <= v <= 1)
_RATE = Rule('a number in (0, 1]', lambda v: _is_real(v) and 0 < v <= 1)
_FRACTION = Rule('a number in (0, 1)', lambda v: _is_real(v) and 0 < v < 1)
_PIXELS = Rule(
  'a tuple of 1 or 3 finite numbers, in units of the full pixel range',
  lambda v: (
    isinstance(v, Sequence) and len(v) in (1, 3) and all(map(_is_real, v))
  ),
)
_DEVIATIONS = Rule(
  'a tuple of 1 or 3 finite numbers above 0',
  lambda v: _PIXELS.holds(v) and min(v) > 0,
)

_SHA256 = re.compile('[0-9a-fA-F]{64}')

# Every key that each config has. `loss`, `miner` and `model` also hold what the
# chosen function takes; those packages check it themselves.
RULES = {
  'seed': Rule(
    'an integer from 0 to 2**31 - 1',
    lambda v: _is_int(v) and 0 <= v < 2**31,
  ),
  'num_epochs': _COUNT,
  'num_train_steps': _optional(_COUNT),
  'eval_every_steps': _optional(_COUNT),
  'checkpoint_every_steps': _optional(_COUNT),
  'log_every_steps': _COUNT,
  'data.name': _TEXT,
  # Where the data are, and which of them.
  'data.dir': _optional(_TEXT),
  'data.file': _optional(_TEXT),
  'data.encoding': _optional(_TEXT),
  'data.label_separator': _optional(_TEXT),
  'data.domain_column': _optional(_TEXT),
  'data.fonts': _optional(_TEXT),
  'data.subset': _optional(_TEXT),
  'data.recognition': _FLAG,
  'data.distractors': _optional(_TEXT),
  'data.train_split': _optional(_TEXT),
  'data.test_split': _optional(_TEXT),
  'data.gallery': _optional(_TEXT),
  'data.use_boxes': _FLAG,
  'data.image_feature': _optional(_TEXT),
  'data.label_feature': _optional(_TEXT),
  # Who is trained on, asked and searched in.
  'data.split': _optional(_TEXT),
  'data.test_fraction': _FRACTION,
  'data.test_domain': _optional(_TEXT),
  'data.query_fraction': _optional(_FRACTION),
  'data.validation': _optional(_TEXT),
  'data.validation_folds': Rule(
    'an integer of at least 2', lambda v: _is_int(v) and v >= 2
  ),
  'data.validation_fold': _NATURAL,
  'data.split_seed': _NATURAL,
  # How a picture becomes an array.
  'data.image_size': _optional(_COUNT),
  'data.resize_size': _optional(_COUNT),
  'data.channels': _optional(Rule('1 or 3', lambda v: v in (1, 3))),
  'data.canvas_size': _optional(_COUNT),
  'data.num_threads': _NATURAL,
  'data.max_unreadable_share': _SHARE,
  # What is in a batch.
  'data.batch_size': _COUNT,
  'data.sampler': _TEXT,
  'data.classes_per_batch': _NATURAL,
  'data.categories_per_batch': _NATURAL,
  'data.views_per_image': _COUNT,
  'data.class_power': _SHARE,
  'data.mixing': _TEXT,
  'data.mean': _PIXELS,
  'data.std': _DEVIATIONS,
  'model.name': _TEXT,
  'model.embedding_dim': _COUNT,
  'model.init_from': _optional(_TEXT),
  'model.pretrained': _optional(_TEXT),
  'model.pretrained_sha256': _optional(
    Rule(
      'a SHA-256, 64 hexadecimal digits',
      lambda v: isinstance(v, str) and bool(_SHA256.fullmatch(v)),
    )
  ),
  'loss.name': _TEXT,
  'miner.name': _optional(_TEXT),
  'head.sharded': _FLAG,
  'head.sample_rate': _RATE,
  'head.init': _one_of('normal', 'class_mean'),
  'head.init_images': _COUNT,
  'memory.size': _NATURAL,
  'memory.warmup_steps': _NATURAL,
  'gradient_cache.chunk_size': _optional(_COUNT),
  'optimizer.name': _TEXT,
  'optimizer.learning_rate': _POSITIVE,
  'optimizer.warmup_steps': _NATURAL,
  'optimizer.schedule': _TEXT,
  'optimizer.weight_decay': _NONNEGATIVE,
  'optimizer.clip_norm': _optional(_POSITIVE),
  'optimizer.head_learning_rate_multiplier': _POSITIVE,
  'optimizer.backbone_learning_rate_multiplier': _POSITIVE,
  'optimizer.layer_decay': _RATE,
  'optimizer.frozen': Rule(
    'a tuple of regular expressions of paths of parameters, or ()',
    lambda v: (
      isinstance(v, Sequence)
      and not isinstance(v, str)
      and all(map(_is_pattern, v))
    ),
  ),
  'optimizer.head_only_steps': _NATURAL,
  'optimizer.accumulate_steps': _COUNT,
  'optimizer.ema_decay': _optional(_FRACTION),
  'eval.metrics': Rule(
    'a tuple of names',
    lambda v: (
      isinstance(v, Sequence)
      and not isinstance(v, str)
      and len(v) > 0
      and all(isinstance(name, str) for name in v)
    ),
  ),
  'eval.ignore': Rule(
    "a tuple of 'sequence' and 'domain', or ()",
    lambda v: (
      isinstance(v, Sequence)
      and not isinstance(v, str)
      and set(v) <= {'sequence', 'domain'}
    ),
  ),
  'eval.same_category_grade': Rule(
    'a number from 0 to 1', lambda v: _is_real(v) and 0 <= v <= 1
  ),
  'eval.batch_size': _COUNT,
  'eval.flip': _FLAG,
  'eval.scales': Rule(
    'a tuple of finite numbers above 0',
    lambda v: (
      isinstance(v, Sequence)
      and not isinstance(v, str)
      and len(v) > 0
      and all(_is_real(scale) and scale > 0 for scale in v)
    ),
  ),
  'eval.scale_pooling': _one_of('mean', 'max'),
  'eval.pooling': _optional(_TEXT),
  'eval.gem_p': _optional(_REAL),
  'eval.whiten': _FLAG,
  'eval.projector_images': _NATURAL,
  'eval.memory_budget_mb': _POSITIVE,
  'eval.postprocessing': Rule(
    'a tuple of names, or ()',
    lambda v: (
      isinstance(v, Sequence)
      and not isinstance(v, str)
      and all(isinstance(name, str) for name in v)
    ),
  ),
  'eval.list_length': _COUNT,
} | {
  f'eval.{name}.{option}': Rule(
    allowed.allowed(), lambda v, rule=allowed: rule.complaint(v) is None
  )
  for name, row in neighbors.POSTPROCESSING.items()
  for option, allowed in row.options.items()
}
