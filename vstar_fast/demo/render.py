"""Renders a track of the skeleton as a dressed capsule figure on a floor, in numpy, all frames at once.

Each capsule is drawn for every frame of a chunk in one go, and only inside its own bounding box; a depth
buffer sorts them. The floor is evaluated once for a resting camera. Colours are floats in 0..1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vstar_fast.demo.skeleton import Floats, Proportions, Skeleton

CHUNK = 24
"""Frames drawn together: their buffers stay in a core's cache."""
_FAR = np.float32(1e9)


@dataclass(frozen=True)
class Camera:
    """Looks at `target` [T, 3] (metres) from `distance_m`; angles in degrees, azimuth from the start heading."""

    target: Floats
    azimuth_deg: float
    elevation_deg: float
    distance_m: float
    fov_deg: float

    def axes(self) -> Floats:
        """Rows right, up, forward [3, 3] of the view in world axes."""
        azimuth, elevation = np.radians(self.azimuth_deg), np.radians(self.elevation_deg)
        level = np.array((np.cos(azimuth), 0, np.sin(azimuth)))
        forward = -(np.cos(elevation) * level + np.sin(elevation) * np.array((0, 1, 0)))
        right = np.cross(forward, (0, 1, 0))
        right /= np.linalg.norm(right)
        return np.stack((right, np.cross(right, forward), forward)).astype(np.float32)

    def view(self, points: Floats) -> Floats:
        """World points [T, K, 3] -> camera axes (right, up, depth) [T, K, 3]."""
        out = (points - self.target[:, None]) @ self.axes().T
        return (out + np.array((0, 0, self.distance_m), np.float32)).astype(np.float32, copy=False)

    def during(self, part: slice) -> "Camera":
        """The same camera for some of its frames."""
        return replace(self, target=self.target[part])

    def pixels(self, seen: Floats, size: tuple[int, int]) -> tuple[Floats, Floats]:
        """Points in camera axes [..., 3] -> pixel positions [..., 2] and depths [...] (at least 0.2 m)."""
        depth = np.maximum(seen[..., 2], np.float32(0.2))
        flat = seen[..., :2] * (np.float32(self.focal(size)) / depth)[..., None]
        flat = flat * np.array((1, -1), np.float32) + np.array(size, np.float32) / 2
        return flat.astype(np.float32), depth

    def focal(self, size: tuple[int, int]) -> float:
        """Pixels of one unit at depth one; the field of view spans the shorter side of (width, height)."""
        return 0.5 * min(size) / float(np.tan(np.radians(self.fov_deg) / 2))


@dataclass(frozen=True)
class Look:
    """Appearance of a clip: colours [3] in 0..1, limb thickness factors, floor tile in metres, light direction."""

    skin: Floats
    hair: Floats
    shirt: Floats
    trousers: Floats
    shoes: Floats
    floor: Floats
    tiles: Floats
    sky: Floats
    horizon: Floats
    light: Floats
    ambient: float
    tile_m: float
    stout: float
    sleeves: bool
    shorts: bool
    proportions: Proportions


def random_look(rng: np.random.Generator) -> Look:
    """Draws clothes, skin, body, floor, sky and light."""
    skins = np.array(((0.96, 0.80, 0.69), (0.87, 0.67, 0.52), (0.72, 0.51, 0.37), (0.50, 0.34, 0.24)))
    hairs = np.array(((0.10, 0.08, 0.07), (0.30, 0.19, 0.11), (0.70, 0.55, 0.30), (0.45, 0.18, 0.10)))
    ground = _colour(rng, (0.05, 0.35), (0.35, 0.75))
    height = np.radians(rng.uniform(50, 75))
    around = rng.uniform(0, 2 * np.pi)
    light = (np.cos(height) * np.cos(around), np.sin(height), np.cos(height) * np.sin(around))
    sky = _colour(rng, (0.05, 0.45), (0.55, 0.95))
    return Look(
        skin=(skins[rng.integers(4)] * rng.uniform(0.92, 1.04)).astype(np.float32),
        hair=hairs[rng.integers(4)].astype(np.float32),
        shirt=_colour(rng, (0.3, 0.9), (0.45, 0.95)),
        trousers=_colour(rng, (0.2, 0.8), (0.2, 0.7)),
        shoes=_colour(rng, (0.0, 0.6), (0.1, 0.9)),
        floor=ground,
        tiles=(ground * rng.uniform(0.68, 0.88)).astype(np.float32),
        sky=sky,
        horizon=(0.5 * sky + 0.5 * rng.uniform(0.6, 0.95)).astype(np.float32),
        light=np.array(light, np.float32),
        ambient=float(rng.uniform(0.4, 0.6)),
        tile_m=float(rng.uniform(0.5, 1.1)),
        stout=float(rng.uniform(0.88, 1.2)),
        sleeves=bool(rng.random() < 0.5),
        shorts=bool(rng.random() < 0.35),
        proportions=Proportions(*(float(x) for x in rng.uniform(0.93, 1.07, 3))),
    )


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Floats:
    hue, s, v = rng.random(), rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.clip(np.abs((hue * 6 + np.array((0, 4, 2))) % 6 - 3) - 1, 0, 1)
    return (v * (1 - s + s * ramp)).astype(np.float32)


@dataclass(frozen=True)
class Capsules:
    """K capsules a frame: `ends` [T, K, 2, 3] metres, `radii` [K, 2] metres, `colours` [K, 3]."""

    ends: Floats
    radii: Floats
    colours: Floats


def dress(body: Skeleton, look: Look) -> Capsules:
    """The figure's 19 capsules."""
    at, mid = body.at, lambda a, b, w: body.at(a) * np.float32(1 - w) + body.at(b) * np.float32(w)
    back = body.head_turn[:, :, 0] * np.float32(-0.03) + body.head_turn[:, :, 1] * np.float32(0.025)
    arm = look.shirt if look.sleeves else look.skin
    shin = look.skin if look.shorts else look.trousers
    parts: list[tuple[Floats, Floats, float, float, Floats]] = [
        (at("right_hip"), at("left_hip"), 0.10, 0.10, look.trousers),
        (at("root"), at("chest"), 0.115, 0.115, look.shirt),
        (at("chest"), mid("chest", "neck", 0.6), 0.115, 0.11, look.shirt),
        (mid("right_shoulder", "neck", 0.15), mid("left_shoulder", "neck", 0.15), 0.075, 0.075, look.shirt),
        (at("neck"), mid("neck", "head", 0.6), 0.05, 0.05, look.skin),
        (mid("neck", "head", 0.85), at("head"), 0.095, 0.10, look.skin),
        (at("head") + back, at("head") + back, 0.104, 0.104, look.hair),
    ]
    for side in ("right_", "left_"):
        shoulder, elbow, wrist = (at(side + j) for j in ("shoulder", "elbow", "wrist"))
        hip, knee, ankle = (at(side + j) for j in ("hip", "knee", "ankle"))
        parts += [
            (shoulder, elbow, 0.055, 0.045, look.shirt),
            (elbow, wrist, 0.044, 0.034, arm),
            (wrist, wrist + (wrist - elbow) * np.float32(0.25), 0.045, 0.042, look.skin),
            (hip, knee, 0.085, 0.062, look.trousers),
            (knee, ankle, 0.06, 0.042, shin),
            (at(side + "heel"), at(side + "toe"), 0.048, 0.04, look.shoes),
        ]
    ends = np.stack([np.stack((a, b), 1) for a, b, *_ in parts], 1).astype(np.float32)
    radii = np.array([(ra, rb) for _, _, ra, rb, _ in parts], np.float32) * np.float32(look.stout)
    return Capsules(ends, radii, np.stack([colour for *_, colour in parts]))


def render(body: Skeleton, camera: Camera, look: Look, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Frames [H, W, 3] uint8 of a track; `size` is (width, height)."""
    figure = dress(body, look)
    floor = _Floor(camera, look, size)
    for start in range(0, len(body.points), CHUNK):
        part = slice(start, start + CHUNK)
        view = camera.during(part)
        capsules = replace(figure, ends=figure.ends[part])
        image = floor.draw(view.target)
        _shade_floor(image, floor, capsules, view, look)
        _draw(image, capsules, view, look)
        yield from (np.clip(image, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


class _Floor:
    """Background of a clip: tiled floor fading into the horizon, and sky."""

    def __init__(self, camera: Camera, look: Look, size: tuple[int, int]) -> None:
        self.look, self.size, focal = look, size, camera.focal(size)
        right, up, ahead = camera.axes()
        u = (np.arange(size[0], dtype=np.float32) + 0.5 - size[0] / 2) / focal
        v = -(np.arange(size[1], dtype=np.float32) + 0.5 - size[1] / 2) / focal
        rays = ahead + v[:, None, None] * up + u[None, :, None] * right
        self.below = rays[..., 1] < -1e-3
        eye = -ahead * np.float32(camera.distance_m)
        drop = np.where(self.below, rays[..., 1], np.float32(-1))
        reach = (-(camera.target[0, 1] + eye[1]) / drop)[..., None]
        self.ground = (eye + rays * reach)[..., (0, 2)].astype(np.float32)
        """Floor point (x, z) [H, W, 2] of each pixel, from below the camera's target."""
        far = reach[..., 0] / np.float32(camera.distance_m)
        self.haze = np.where(self.below, np.clip((far - 1) / 5, 0, 1), 1).astype(np.float32)[..., None]
        self.crisp = np.clip(focal * look.tile_m / (reach[..., 0] * 4), 0.6, 12).astype(np.float32)
        height = np.clip(v / (v.max() + 1e-6), 0, 1)[:, None, None]
        self.sky = np.broadcast_to(look.horizon + (look.sky - look.horizon) * height, (*size[::-1], 3))
        self.resting = bool(np.ptp(camera.target, axis=0).max() < 1e-6)
        self.still = self._at(camera.target[0]) if self.resting else None

    def draw(self, target: Floats) -> Floats:
        """Empty scene [T, H, W, 3] for camera targets [T, 3]."""
        if self.still is not None:
            return np.repeat(self.still[None], len(target), 0)
        return np.stack([self._at(t) for t in target])

    def _at(self, target: Floats) -> Floats:
        phase = (self.ground + target[[0, 2]]) * np.float32(np.pi / self.look.tile_m)
        waves = np.sin(phase)
        tile = np.clip(waves[..., 0] * waves[..., 1] * self.crisp, -0.5, 0.5)[..., None] + np.float32(0.5)
        ground = self.look.tiles + (self.look.floor - self.look.tiles) * tile
        return ground + (self.sky - ground) * self.haze


def _boxes(low: Floats, high: Floats, size: tuple[int, int]) -> tuple[NDArray[np.intp], ...]:
    """Pixels inside T boxes given by corners [T, 2]: flat arrays of frame, column and row."""
    limit = np.array(size)
    first = np.clip(np.floor(low), 0, limit).astype(np.intp)
    span = np.clip(np.ceil(high), 0, limit).astype(np.intp) - first
    count = np.maximum(span, 0).prod(1)
    frame = np.repeat(np.arange(len(count)), count)
    inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    row, column = np.divmod(inside, span[frame, 0])
    return frame, column + first[frame, 0], row + first[frame, 1]


def _nearest(px: Floats, py: Floats, a: Floats, b: Floats, frame: NDArray[np.intp]) -> tuple[Floats, ...]:
    """Position along segment a-b [T, 2] in 0..1 and offset (x, y) from it, for flat points."""
    span = b - a
    squared = np.maximum((span * span).sum(1), np.float32(1e-9))
    along = span / squared[:, None]
    dx, dy = px - a[frame, 0], py - a[frame, 1]
    t = np.clip(dx * along[frame, 0] + dy * along[frame, 1], 0, 1)
    return t, dx - t * span[frame, 0], dy - t * span[frame, 1]


def _shade_floor(image: Floats, floor: _Floor, figure: Capsules, camera: Camera, look: Look) -> None:
    """Darken the floor where a capsule stands between it and the light; exact on the floor plane."""
    shade = np.zeros(image.shape[:3], np.float32)
    focal, level = camera.focal(floor.size), (0, 2)
    cast = figure.ends - figure.ends[..., 1:2] * (look.light / look.light[1])
    for k, radius in enumerate(figure.radii.mean(1)):
        pixel, depth = camera.pixels(camera.view(cast[:, k]), floor.size)
        reach = (radius * 1.6 * focal / depth.min(1))[:, None]
        frame, x, y = _boxes(pixel.min(1) - reach, pixel.max(1) + reach, floor.size)
        place = floor.ground[y, x]
        a, b = (cast[:, k, end][:, level] - camera.target[:, level] for end in (0, 1))
        _, dx, dy = _nearest(place[:, 0], place[:, 1], a, b, frame)
        dark = np.clip((radius * 1.25 - np.sqrt(dx * dx + dy * dy)) / (radius * 0.5), 0, 1) * floor.below[y, x]
        shade[frame, y, x] = np.maximum(shade[frame, y, x], dark)
    image *= (1 - np.float32(0.5) * shade)[..., None]


def _draw(image: Floats, figure: Capsules, camera: Camera, look: Look) -> None:
    """Draw the capsules over `image` [T, H, W, 3], nearest in front."""
    depth = np.full(image[..., 0].size, _FAR, np.float32)
    light = camera.axes() @ look.light
    for k in range(len(figure.radii)):
        at, z, normal, cover = _rasterise(image.shape, figure.ends[:, k], figure.radii[k], camera)
        front = z < depth[at]
        at, cover = at[front], cover[front]
        lit = np.maximum(normal[front] @ (light * np.array((1, 1, -1), np.float32)), 0)
        colour = (look.ambient + (1.05 - look.ambient) * lit)[:, None].astype(np.float32) * figure.colours[k]
        flat = image.reshape(-1, 3)
        flat[at] += (colour - flat[at]) * cover[:, None]
        solid = cover > 0.5
        depth[at[solid]] = z[front][solid]


def _rasterise(
    shape: tuple[int, ...], ends: Floats, radii: Floats, camera: Camera
) -> tuple[NDArray[np.intp], Floats, Floats, Floats]:
    """Pixels that one capsule, `ends` [T, 2, 3], covers in all frames.

    Flat arrays: index into [T, H, W], depth in metres, normal [., 3] towards the camera (right, up, near), and
    how much of the pixel is covered (0..1, for smooth outlines).
    """
    size = (shape[2], shape[1])
    pixel, depth = camera.pixels(camera.view(ends), size)
    wide = radii * (np.float32(camera.focal(size)) / depth)
    edge = wide[..., None] + 1
    frame, x, y = _boxes((pixel - edge).min(1), (pixel + edge).max(1), size)
    t, dx, dy = _nearest(x + np.float32(0.5), y + np.float32(0.5), pixel[:, 0], pixel[:, 1], frame)
    r = wide[frame, 0] + t * (wide[:, 1] - wide[:, 0])[frame]
    away = np.sqrt(dx * dx + dy * dy)
    keep = away < r + np.float32(0.5)
    frame, x, y, t, dx, dy, r, away = (v[keep] for v in (frame, x, y, t, dx, dy, r, away))
    nx, ny = dx / r, -dy / r
    nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0))
    thick = radii[0] + t * (radii[1] - radii[0])
    z = depth[frame, 0] + t * (depth[:, 1] - depth[:, 0])[frame] - thick * nz
    at = (frame * shape[1] + y) * shape[2] + x
    return at, z, np.stack((nx, ny, nz), 1), np.clip(r - away + np.float32(0.5), 0, 1)
