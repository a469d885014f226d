"""How like the true images what was read is: MONAI's PSNR and SSIM."""

from __future__ import annotations

from monai.metrics import PSNRMetric, SSIMMetric
from torch import Tensor


def psnr(found: Tensor, true: Tensor) -> list[float]:
    """Return the peak signal-to-noise ratio of each image in dB; both of shape (images, 1, height, width), 0 to 1."""
    return _each(PSNRMetric(max_val=1.0)(found, true))


def ssim(found: Tensor, true: Tensor) -> list[float]:
    """Return the structural similarity of each image, in windows of 7 × 7: 1 is the image itself."""
    metric = SSIMMetric(spatial_dims=2, data_range=1.0, kernel_type="uniform", win_size=7)
    return _each(metric(found, true))


def _each(values: object) -> list[float]:
    assert isinstance(values, Tensor)
    return [float(value) for value in values.flatten()]
