# SPDX-License-Identifier: Apache-2.0
"""What a Kinect-like camera makes of perfect images: colour noise, depth noise, holes and limited range."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

MIN_DEPTH_M = 0.5
MAX_DEPTH_M = 6.0
BASELINE_M = 0.075
DISPARITY_STEPS = 8 * 580 * BASELINE_M
"""In eighths of a pixel, at the Kinect's focal length of 580 pixels: a depth is this over a whole number."""


def expose(radiance: Floats, exposure: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The colour image (H, W, 3) of `radiance` (3, H, W): soft lens, vignette, exposure, noise."""
    image = _lens(radiance) * (exposure * _vignette(radiance.shape[1], radiance.shape[2]))
    noise = rng.standard_normal(image.shape, np.float32)
    image = image * 255 + noise * np.sqrt(2 + 12 * np.maximum(image, 0))
    return np.ascontiguousarray(np.clip(np.rint(image), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def measure_depth(
    depth: Floats, incidence: Floats, focal: float, rng: np.random.Generator
) -> npt.NDArray[np.uint16]:
    """The depth image in millimetres, 0 where there is no reading.

    `depth` (H, W) is the true z-depth in metres, `incidence` (H, W) the cosine between the ray and the surface
    normal, `focal` the focal length in pixels.
    """
    chance = _patchy(depth.shape, rng)
    lost = _projector_shadow(depth, focal) | (chance < _loss_chance(incidence)) | _blobs(depth.shape, rng)
    seen = _ragged(depth, rng)
    seen += noise_sigma(seen) * rng.standard_normal(depth.shape, np.float32)
    disparity = np.rint(np.float32(DISPARITY_STEPS) / np.maximum(seen, np.float32(0.1)))
    measured = np.float32(DISPARITY_STEPS) / np.maximum(disparity, np.float32(1))
    lost |= (measured < MIN_DEPTH_M) | (measured > MAX_DEPTH_M)
    return np.where(lost, 0, np.rint(measured * 1000)).astype(np.uint16)


def noise_sigma(depth: Floats) -> Floats:
    """Standard deviation of the axial noise in metres, before quantisation (Nguyen et al., 3DIMPVT 2012)."""
    return np.float32(0.0012) + np.float32(0.0019) * np.square(depth - np.float32(0.4))


def _lens(image: Floats) -> Floats:
    """A slight blur: the binomial kernel 1/4, 1/2, 1/4 along both axes."""
    for _ in range(2):
        edged = np.concatenate([image[:, :1], image, image[:, -1:]], axis=1)
        image = 0.25 * (edged[:, :-2] + edged[:, 2:]) + 0.5 * image
        image = image.swapaxes(1, 2)
    return image


def _vignette(height: int, width: int) -> Floats:
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    return 1 - np.float32(0.08) * (x * x + y * y)


def _ragged(depth: Floats, rng: np.random.Generator) -> Floats:
    """Depth looked up at most one pixel beside: the ragged edges of a correlation window."""
    height, width = depth.shape
    steps = rng.choice(np.array([-1, 0, 0, 0, 0, 1], np.int8), (2, height, width))
    rows = np.clip(np.arange(height)[:, None] + steps[0], 0, height - 1)
    columns = np.clip(np.arange(width) + steps[1], 0, width - 1)
    return depth[rows, columns]


def _projector_shadow(depth: Floats, focal: float) -> npt.NDArray[np.bool_]:
    """Pixels that the projector, a baseline to the left, cannot light: a band to the right of near edges."""
    projected = np.arange(depth.shape[1], dtype=np.float32) + np.float32(focal * BASELINE_M) / depth
    return projected < np.maximum.accumulate(projected, axis=1)


def _loss_chance(incidence: Floats) -> Floats:
    """The chance of no reading: small, rising to nearly always where the ray grazes the surface."""
    grazing = np.clip(1 - incidence / np.float32(0.3), 0, 1)
    return np.float32(0.003) + np.float32(0.9) * grazing


def _patchy(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Uniform numbers in [0, 1), each shared by 2 x 2 pixels."""
    coarse = rng.random(((shape[0] + 1) // 2, (shape[1] + 1) // 2), np.float32)
    return coarse.repeat(2, axis=0).repeat(2, axis=1)[: shape[0], : shape[1]]


def _blobs(shape: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A few small discs without a reading."""
    height, width = shape
    mask = np.zeros(shape, np.bool_)
    for _ in range(rng.poisson(20)):
        radius = rng.uniform(0.003, 0.012) * width
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        rows = slice(max(0, int(row - radius)), int(row + radius) + 2)
        columns = slice(max(0, int(column - radius)), int(column + radius) + 2)
        y, x = np.ogrid[rows, columns]
        y, x = y[y < height, None], x[:, x[0] < width]
        mask[rows, columns] |= (y - row) ** 2 + (x - column) ** 2 <= radius * radius
    return mask
