"""Records the triplet losses; see `pml_recording` for what it needs."""

from pml_recording import Case, record
from pytorch_metric_learning import distances, losses, miners, reducers

Triplet = losses.TripletMarginLoss
mean = reducers.MeanReducer


def miner_case(kind, margin=0.2, loss_margin=0.3):
  miner = {
    'name': 'triplet_margin',
    'margin': margin,
    'type_of_triplets': kind,
  }
  return Case(
    'triplet_margin',
    {'margin': loss_margin, 'miner': miner},
    Triplet(margin=loss_margin),
    miners.TripletMarginMiner(margin=margin, type_of_triplets=kind),
  )


def case(arguments, pml, miner=None, **more):
  return Case('triplet_margin', arguments, pml, miner, **more)


CASES = {
  'triplet': case({}, Triplet()),
  'wide': case({'margin': 0.4}, Triplet(margin=0.4)),
  'mean': case(
    {'margin': 0.2, 'reducer': 'mean'}, Triplet(margin=0.2, reducer=mean())
  ),
  'sum': case(
    {'margin': 0.2, 'reducer': 'sum'},
    Triplet(margin=0.2, reducer=reducers.SumReducer()),
  ),
  'threshold': case(
    {
      'margin': 0.5,
      'reducer': {'name': 'threshold', 'low': 0.2, 'high': 0.6},
    },
    Triplet(margin=0.5, reducer=reducers.ThresholdReducer(low=0.2, high=0.6)),
  ),
  'threshold_high': case(
    {'margin': 0.5, 'reducer': {'name': 'threshold', 'high': 0.6}},
    Triplet(margin=0.5, reducer=reducers.ThresholdReducer(high=0.6)),
  ),
  'references': case({'margin': 0.2}, Triplet(margin=0.2), references=True),
  'swap': case({'margin': 0.2, 'swap': True}, Triplet(margin=0.2, swap=True)),
  'smooth': case({'smooth_loss': True}, Triplet(smooth_loss=True)),
  'smooth_swap_cosine': case(
    {
      'margin': 0.3,
      'smooth_loss': True,
      'swap': True,
      'distance': 'cosine',
      'reducer': 'mean',
    },
    Triplet(
      margin=0.3,
      smooth_loss=True,
      swap=True,
      distance=distances.CosineSimilarity(),
      reducer=mean(),
    ),
  ),
  'cosine_references': case(
    {'margin': 0.2, 'distance': 'cosine'},
    Triplet(margin=0.2, distance=distances.CosineSimilarity()),
    references=True,
  ),
  'squared': case(
    {'margin': 0.5, 'distance': {'name': 'lp', 'power': 2}},
    Triplet(margin=0.5, distance=distances.LpDistance(power=2)),
  ),
  'manhattan': case(
    {
      'margin': 1.0,
      'distance': {'name': 'lp', 'p': 1, 'normalize': False},
    },
    Triplet(
      margin=1.0,
      distance=distances.LpDistance(p=1, normalize_embeddings=False),
    ),
  ),
  'snr': case(
    {'margin': 0.5, 'distance': 'snr'},
    Triplet(margin=0.5, distance=distances.SNRDistance()),
  ),
  'all': miner_case('all'),
  'hard': miner_case('hard'),
  'semihard': miner_case('semihard'),
  'easy': miner_case('easy'),
  'semihard_mean': case(
    {
      'margin': 0.1,
      'reducer': 'mean',
      'miner': {'name': 'triplet_margin', 'type_of_triplets': 'semihard'},
    },
    Triplet(margin=0.1, reducer=mean()),
    miners.TripletMarginMiner(margin=0.2, type_of_triplets='semihard'),
  ),
  'semihard_of_another_distance': case(
    {
      'margin': 0.1,
      'miner': {
        'name': 'triplet_margin',
        'type_of_triplets': 'semihard',
        'distance': 'cosine',
      },
    },
    Triplet(margin=0.1),
    miners.TripletMarginMiner(
      margin=0.2,
      type_of_triplets='semihard',
      distance=distances.CosineSimilarity(),
    ),
  ),
  'angular': case(
    {'margin': 0.2, 'swap': True, 'miner': {'name': 'angular', 'angle': 35}},
    Triplet(margin=0.2, swap=True),
    miners.AngularMiner(angle=35),
  ),
  'batch_hard': case(
    {'margin': 0.2, 'miner': 'batch_hard'},
    Triplet(margin=0.2),
    miners.BatchHardMiner(),
  ),
  'batch_easy_hard': case(
    {'margin': 0.2, 'reducer': 'mean', 'miner': 'batch_easy_hard'},
    Triplet(margin=0.2, reducer=mean()),
    miners.BatchEasyHardMiner(),
  ),
}

if __name__ == '__main__':
  record('triplet', CASES)
