"""Pictures that are in a collection twice: leaks, two labels, waste."""

import numpy as np

from retrieval_jax.data.checks import duplicates, label_checks
from retrieval_jax.data.checks.findings import Finding, first_details
from retrieval_jax.data.checks.fingerprints import Fingerprints
from retrieval_jax.data.collection import Collection

_SMALL_SIDE = 64


def check_pairs(
  collection: Collection,
  found: Fingerprints,
  near_duplicate_bits: int | None,
  num_threads: int,
) -> list[Finding]:
  """Returns the pictures that occur twice, by where they do.

  Args:
    collection: with its roles resolved.
    found: fingerprints of its pictures, or of some.
    near_duplicate_bits: up to which hashes are near; None: equal pictures are
      looked for alone.
    num_threads: that read and decode; 0: as many as there are cores.
  """
  rows = found.rows
  groups = duplicates.equal_groups(found, collection)
  parts = label_checks.Parts.of(collection, rows)
  same_label = label_checks.SharedLabels(collection, rows)
  every = np.ones(len(rows), bool)
  pairs = {
    'train_test_leak': duplicates.first_of_each(
      groups, parts.is_before_test, parts.is_test
    ),
    'train_validation_leak': duplicates.first_of_each(
      groups, parts.is_train, parts.is_validation
    ),
    'query_gallery_leak': np.concatenate(
      [
        duplicates.first_of_each(
          groups, parts.is_gallery_only & held, parts.is_query_only & held
        )
        for held in (parts.is_validation, parts.is_test)
      ]
    ),
  }
  by_group = duplicates.first_of_each(groups, every, every)
  pairs['two_labels'] = by_group[~same_label(by_group)]
  by_part = duplicates.first_of_each(_joined(groups, parts.codes), every, every)
  twice = by_part[same_label(by_part)]
  is_row_again = found.places[twice[:, 0]] == found.places[twice[:, 1]]
  pairs['duplicate'] = twice[~is_row_again]
  findings = [
    Finding(name, 'pairs', rows[indices]) for name, indices in pairs.items()
  ]
  if collection.boxes is not None:
    _, files = np.unique(found.paths, return_inverse=True)
    shared = duplicates.first_of_each(
      files, parts.is_before_test, parts.is_test
    )
    other = groups[shared[:, 0]] != groups[shared[:, 1]]
    findings.append(Finding('shared_picture', 'pairs', rows[shared[other]]))
  if near_duplicate_bits is not None:
    # Of rows that differ in nothing, one is compared.
    alike = _joined(groups, parts.codes, same_label.first)
    is_first = np.zeros(len(rows), bool)
    is_first[np.unique(alike, return_index=True)[1]] = True
    chosen = np.flatnonzero(is_first & found.is_readable & ~found.is_blank)
    findings += _check_near_pairs(
      collection,
      found,
      chosen,
      groups,
      parts,
      same_label,
      near_duplicate_bits,
      num_threads,
    )
  return findings


def _check_near_pairs(
  collection, found, chosen, groups, parts, same_label, max_bits, num_threads
) -> list[Finding]:
  """Pictures that nearly occur twice, sorted by where."""
  near = duplicates.near_pairs(found.hashes[chosen], max_bits)
  indices = chosen[near.pairs]
  is_other = groups[indices[:, 0]] != groups[indices[:, 1]]
  near = near._replace(
    pairs=indices[is_other], distances=near.distances[is_other]
  )
  near = duplicates.keep_alike(near, collection, found.rows, num_threads)
  pairs, left, right = near.pairs, *near.pairs.T
  is_small = (found.sizes[pairs].min(axis=2) < _SMALL_SIDE).any(axis=1)
  crosses_test = parts.is_known[pairs].all(1) & (
    parts.is_test[left] != parts.is_test[right]
  )
  crosses_validation = parts.is_known[pairs].all(1) & (
    parts.is_validation[left] != parts.is_validation[right]
  )
  asks = parts.is_query_only[pairs].any(1) & parts.is_gallery_only[pairs].any(1)
  differs = ~same_label(pairs)
  crosses = crosses_test | crosses_validation
  masks = {
    'small_near_duplicate': is_small,
    'near_train_test_leak': ~is_small & crosses_test,
    'near_train_validation_leak': ~is_small
    & crosses_validation
    & ~crosses_test,
    'near_query_gallery': ~is_small & ~crosses & asks,
    'near_two_labels': ~is_small & differs & ~crosses,
    'near_duplicate': ~is_small & ~crosses & ~asks & ~differs,
  }
  findings = [
    Finding(
      name,
      'pairs',
      found.rows[pairs[mask]],
      first_details(near.distances[mask], lambda bits: f'{bits} bits apart'),
    )
    for name, mask in masks.items()
  ]
  if not near.is_complete:
    findings.append(
      Finding('incomplete_search', 'whole', np.zeros(0, np.int64), total=1)
    )
  return findings


def _joined(*columns: np.ndarray) -> np.ndarray:
  """Returns [n] int64, equal where all columns are, in [0, n)."""
  groups = np.unique(np.stack(columns), axis=1, return_inverse=True)[1]
  return groups.reshape(-1)
