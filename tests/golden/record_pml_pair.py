"""Records the losses of pairs; see `pml_recording` for what it needs."""

from pml_recording import Case, record
from pytorch_metric_learning import distances, losses, reducers


class FixedHistogram(losses.DynamicSoftMarginLoss):
  """Without a gradient through the histogram, with which PML's step 2 fails."""

  def update_histogram(self, data):
    super().update_histogram(data.detach())


COSINE = {'distance': 'cosine'}
CASES = {
  'circle': Case('circle', {}, losses.CircleLoss()),
  'circle_soft': Case(
    'circle',
    {'margin': 0.25, 'scale': 4.0},
    losses.CircleLoss(m=0.25, gamma=4.0),
  ),
  'circle_references': Case(
    'circle',
    {'margin': 0.25, 'scale': 4.0},
    losses.CircleLoss(m=0.25, gamma=4.0),
    references=True,
  ),
  'contrastive': Case('contrastive', {}, losses.ContrastiveLoss()),
  'contrastive_soft': Case(
    'contrastive',
    {'pos_margin': 0.7, 'neg_margin': 1.4, 'reducer': 'mean'},
    losses.ContrastiveLoss(
      pos_margin=0.7, neg_margin=1.4, reducer=reducers.MeanReducer()
    ),
  ),
  'contrastive_cosine_references': Case(
    'contrastive',
    {'pos_margin': 0.9, 'neg_margin': 0.1, **COSINE},
    losses.ContrastiveLoss(
      pos_margin=0.9, neg_margin=0.1, distance=distances.CosineSimilarity()
    ),
    references=True,
  ),
  'dynamic_soft_margin': Case('dynamic_soft_margin', {}, FixedHistogram()),
  'dynamic_soft_margin_fine': Case(
    'dynamic_soft_margin',
    {'min_val': -1.75, 'num_bins': 37, 'momentum': 0.5},
    FixedHistogram(min_val=-1.75, num_bins=37, momentum=0.5),
  ),
  'dynamic_soft_margin_references': Case(
    'dynamic_soft_margin', {}, FixedHistogram(), references=True
  ),
  'generalized_lifted_structure': Case(
    'generalized_lifted_structure', {}, losses.GeneralizedLiftedStructureLoss()
  ),
  'generalized_lifted_structure_soft': Case(
    'generalized_lifted_structure',
    {'neg_margin': -2.6, 'pos_margin': 0.4},
    losses.GeneralizedLiftedStructureLoss(neg_margin=-2.6, pos_margin=0.4),
  ),
  'generalized_lifted_structure_references': Case(
    'generalized_lifted_structure',
    {},
    losses.GeneralizedLiftedStructureLoss(),
    references=True,
  ),
  'intra_pair_variance': Case(
    'intra_pair_variance', {}, losses.IntraPairVarianceLoss()
  ),
  'intra_pair_variance_soft': Case(
    'intra_pair_variance',
    {'pos_eps': 0.3, 'neg_eps': 0.2},
    losses.IntraPairVarianceLoss(pos_eps=0.3, neg_eps=0.2),
  ),
  'intra_pair_variance_lp': Case(
    'intra_pair_variance',
    {'distance': 'lp'},
    losses.IntraPairVarianceLoss(distance=distances.LpDistance()),
  ),
  'intra_pair_variance_references': Case(
    'intra_pair_variance', {}, losses.IntraPairVarianceLoss(), references=True
  ),
  'lifted_structure': Case(
    'lifted_structure', {}, losses.LiftedStructureLoss()
  ),
  'lifted_structure_soft': Case(
    'lifted_structure',
    {'neg_margin': -2.6, 'pos_margin': 0.4},
    losses.LiftedStructureLoss(neg_margin=-2.6, pos_margin=0.4),
  ),
  'lifted_structure_cosine': Case(
    'lifted_structure',
    {'neg_margin': 0.5, 'pos_margin': 1.0, **COSINE},
    losses.LiftedStructureLoss(
      neg_margin=0.5, pos_margin=1.0, distance=distances.CosineSimilarity()
    ),
  ),
  'margin': Case('margin', {}, losses.MarginLoss()),
  'margin_soft': Case(
    'margin',
    {'margin': 0.05, 'beta': 0.9},
    losses.MarginLoss(margin=0.05, beta=0.9),
  ),
  'margin_learnt': Case(
    'margin',
    {'nu': 0.1, 'learn_beta': True},
    losses.MarginLoss(nu=0.1, learn_beta=True),
  ),
  'margin_learnt_per_class': Case(
    'margin',
    {'nu': 0.1, 'learn_beta': True, 'beta_per_class': True},
    losses.MarginLoss(nu=0.1, learn_beta=True, num_classes=5),
  ),
  'margin_references': Case('margin', {}, losses.MarginLoss(), references=True),
  'multi_similarity': Case(
    'multi_similarity', {}, losses.MultiSimilarityLoss()
  ),
  'multi_similarity_soft': Case(
    'multi_similarity',
    {'alpha': 3.0, 'beta': 4.0, 'base': 0.2},
    losses.MultiSimilarityLoss(alpha=3.0, beta=4.0, base=0.2),
  ),
  'multi_similarity_lp': Case(
    'multi_similarity',
    {'distance': 'lp'},
    losses.MultiSimilarityLoss(distance=distances.LpDistance()),
  ),
  'multi_similarity_references': Case(
    'multi_similarity', {}, losses.MultiSimilarityLoss(), references=True
  ),
  'ranked_list': Case(
    'ranked_list',
    {'margin': 0.4, 'negative_temperature': 10.0},
    losses.RankedListLoss(margin=0.4, Tn=10.0),
  ),
  'ranked_list_soft': Case(
    'ranked_list',
    {
      'margin': 0.5,
      'negative_temperature': 1.5,
      'imbalance': 0.3,
      'alpha': 1.4,
      'positive_temperature': 2.0,
    },
    losses.RankedListLoss(margin=0.5, Tn=1.5, imbalance=0.3, alpha=1.4, Tp=2.0),
  ),
  'signal_to_noise_ratio_contrastive': Case(
    'signal_to_noise_ratio_contrastive',
    {},
    losses.SignalToNoiseRatioContrastiveLoss(),
  ),
  'signal_to_noise_ratio_contrastive_soft': Case(
    'signal_to_noise_ratio_contrastive',
    {'pos_margin': 0.3, 'neg_margin': 2.5},
    losses.SignalToNoiseRatioContrastiveLoss(pos_margin=0.3, neg_margin=2.5),
  ),
  'signal_to_noise_ratio_contrastive_references': Case(
    'signal_to_noise_ratio_contrastive',
    {'neg_margin': 2.5},
    losses.SignalToNoiseRatioContrastiveLoss(neg_margin=2.5),
    references=True,
  ),
  'threshold_consistent_margin': Case(
    'threshold_consistent_margin', {}, losses.ThresholdConsistentMarginLoss()
  ),
  'threshold_consistent_margin_soft': Case(
    'threshold_consistent_margin',
    {
      'lambda_plus': 0.7,
      'lambda_minus': 1.5,
      'margin_plus': 0.6,
      'margin_minus': -0.1,
    },
    losses.ThresholdConsistentMarginLoss(
      lambda_plus=0.7, lambda_minus=1.5, margin_plus=0.6, margin_minus=-0.1
    ),
  ),
  'tuplet_margin': Case('tuplet_margin', {}, losses.TupletMarginLoss()),
  'tuplet_margin_soft': Case(
    'tuplet_margin',
    {'margin_deg': 30.0, 'scale': 3.0},
    losses.TupletMarginLoss(margin=30.0, scale=3.0),
  ),
  'tuplet_margin_references': Case(
    'tuplet_margin', {}, losses.TupletMarginLoss(), references=True
  ),
}

if __name__ == '__main__':
  record('pair', CASES)
