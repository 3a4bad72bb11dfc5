"""All metrics of one ranking, in loops, as their definitions read."""

import functools
import itertools
import math

import numpy as np


def loop_metrics(grades, ks=(1, 2, 3, 4, 10)):
  """Returns name -> value of one ranking.

  Args:
    grades: of the rows of the whole gallery, best first; 0 (or False): not
      relevant.
    ks: of the metrics that have a number.
  """
  relevant = [grade > 0 for grade in grades]
  total = sum(relevant)
  hits = [i + 1 for i, hit in enumerate(relevant) if hit]

  def precision(rank):
    return sum(relevant[:rank]) / rank

  def gain(row, k):
    return sum(g / math.log2(i + 2) for i, g in enumerate(row[:k]))

  def trapezoid(rank):
    before = 1.0 if rank == 1 else precision(rank - 1)
    return (before + precision(rank)) / 2

  ideal = sorted(grades, reverse=True)
  precisions = {rank: precision(rank) for rank in hits}
  values = {
    'precision_at_1': float(relevant[0]),
    'r_precision': sum(relevant[:total]) / total,
    'mean_average_precision': sum(precisions.values()) / total,
    'mean_average_precision_at_r': sum(
      value for rank, value in precisions.items() if rank <= total
    )
    / total,
    'mean_reciprocal_rank': 1 / hits[0],
    'ndcg': gain(grades, None) / gain(ideal, None),
    'revisited_mean_average_precision': sum(map(trapezoid, hits)) / total,
  }
  for k in ks:
    within = [value for rank, value in precisions.items() if rank <= k]
    shorter, last = min(total, k), min(k, hits[-1])
    average = 'mean_average_precision_at'
    values |= {
      f'recall_at_{k}': float(hits[0] <= k),
      f'precision_at_{k}': sum(relevant[:k]) / k,
      f'{average}_{k}': sum(within) / shorter,
      f'{average}_{k}_over_r': sum(within) / total,
      f'{average}_{k}_over_hits': sum(within) / max(len(within), 1),
      f'mean_modified_precision_at_{k}': sum(relevant[:shorter]) / shorter,
      f'ndcg_at_{k}': gain(grades, k) / gain(ideal, k),
      f'revisited_precision_at_{k}': sum(relevant[:last]) / last,
    }
  return values


@functools.cache
def over_orders(groups):
  """Returns name -> (mean, lowest, highest) over all orders of the ties.

  Args:
    groups: the grades of a ranking, those that tie in one tuple.
  """
  # Equal grades in another order are the same ranking, each as often.
  orders = [sorted(set(itertools.permutations(group))) for group in groups]
  rows = [
    loop_metrics([grade for part in order for grade in part])
    for order in itertools.product(*orders)
  ]
  return {
    name: [f([row[name] for row in rows]) for f in (np.mean, min, max)]
    for name in rows[0]
  }


NAMES = tuple(loop_metrics([1]))


def brute_force(queries, gallery, grade, *, itself=False, names=NAMES):
  """Returns name -> (mean, lowest, highest) over queries, in float64.

  Similarities that are equal after rounding to 6 digits tie.

  Args:
    queries: [Q, D].
    gallery: [N, D].
    grade: (i, j) -> the relevance of gallery row j to query i; None if it is
      ignored.
    itself: whether row i is left out for query i.
    names: of the metrics.
  """
  unit = [
    x / np.linalg.norm(x, axis=1, keepdims=True)
    for x in (queries.astype(float), gallery.astype(float))
  ]
  found = []
  for i in range(len(queries)):
    columns = [
      j
      for j in range(len(gallery))
      if not (itself and i == j) and grade(i, j) is not None
    ]
    grades = np.array([float(grade(i, j)) for j in columns])
    if not (grades > 0).any():
      continue
    similarities = np.round(unit[1][columns] @ unit[0][i], 6)
    groups = tuple(
      tuple(sorted(grades[similarities == value].tolist()))
      for value in np.unique(similarities)[::-1]
    )
    found.append(over_orders(groups))
  return {name: np.mean([row[name] for row in found], axis=0) for name in names}
