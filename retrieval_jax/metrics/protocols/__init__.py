"""Public protocols: what a benchmark counts, and its files in official form.

- `zero_shot`: CUB-200-2011, Cars-196, Stanford Online Products, In-Shop;
- `revisited`: Revisited Oxford and Paris, Easy, Medium and Hard;
- `google_landmarks`: Google Landmarks v2, retrieval and recognition;
- `uned`: Universal Embeddings, each domain apart and all merged.

Each works on embeddings, and those that have files also on given rankings.
"""

from retrieval_jax.metrics.protocols import (
  google_landmarks,
  landmark_files,
  revisited,
  uned,
  zero_shot,
)

# What a benchmark reports, by the name that a data set gives it.
METRICS = {
  'revisited': revisited.METRICS,
  'google_landmarks': google_landmarks.METRICS,
  'recognition': google_landmarks.RECOGNITION_METRICS,
  'uned': uned.METRICS,
}

__all__ = [
  'METRICS',
  'google_landmarks',
  'landmark_files',
  'revisited',
  'uned',
  'zero_shot',
]
