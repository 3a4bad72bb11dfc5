"""Records PML's softmax losses with a margin."""

from pml_recording import PROXY, Case, record
from pytorch_metric_learning import losses

_ARC, _COS = losses.ArcFaceLoss, losses.CosFaceLoss
_SUB = losses.SubCenterArcFaceLoss
_SPHERE, _LARGE = losses.SphereFaceLoss, losses.LargeMarginSoftmaxLoss

CASES = {
  'arcface': Case('arcface', {}, _ARC(**PROXY)),
  'arcface_soft': Case(
    'arcface',
    {'margin_deg': 45.0, 'scale': 4.0},
    _ARC(margin=45, scale=4, **PROXY),
  ),
  'cosface': Case('cosface', {}, _COS(**PROXY)),
  'cosface_soft': Case(
    'cosface',
    {'margin': 0.1, 'scale': 4.0},
    _COS(margin=0.1, scale=4, **PROXY),
  ),
  'subcenter_arcface': Case('subcenter_arcface', {}, _SUB(**PROXY), centers=3),
  'subcenter_arcface_soft': Case(
    'subcenter_arcface',
    {'margin_deg': 20.0, 'scale': 4.0, 'sub_centers': 2},
    _SUB(margin=20, scale=4, sub_centers=2, **PROXY),
    centers=2,
  ),
  'sphereface': Case('sphereface', {}, _SPHERE(**PROXY)),
  'sphereface_soft': Case(
    'sphereface',
    {'margin': 3, 'scale': 0.3},
    _SPHERE(margin=3, scale=0.3, **PROXY),
  ),
  'sphereface_without_margin': Case(
    'sphereface', {'margin': 1}, _SPHERE(margin=1, **PROXY)
  ),
  'large_margin_softmax': Case('large_margin_softmax', {}, _LARGE(**PROXY)),
  'large_margin_softmax_soft': Case(
    'large_margin_softmax',
    {'margin': 2, 'scale': 0.1},
    _LARGE(margin=2, scale=0.1, **PROXY),
  ),
}

if __name__ == '__main__':
  record('margin_softmax', CASES)
