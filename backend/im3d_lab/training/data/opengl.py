"""Orbits of a pack's props, rendered with OpenGL through EGL: fast, shaded simply, the same on any machine.

Views are 3 × 3 supersampled and stored as premultiplied RGBA. The camera is that of `mini`: fov 33.8°, at the distance
where the prop's bounding sphere about the origin touches the image border.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from im3d.core.orbit import DEFAULT_FOV_DEG, DEFAULT_VIEWS, framing_radius, look_at_origin
from im3d_lab.packs import Prop, Split

SUPERSAMPLING = 3
RADIUS = framing_radius(DEFAULT_FOV_DEG, 1.0)  # for props scaled to the unit sphere
MAX_ELEVATION_DEG = 45.0
# Shares of the training orbits whose prop is deformed, and whose prop fills its pictures exactly. With more deformed
# and fewer exact ones, shapes and frames are learnt that nobody has (training log, runs 2, 4 and 7).
DEFORMED_SHARE = 0.6
EXACT_SHARE = 0.6
# More orbits than a prop ever has in one draw.
DRAW_STRIDE = 1000

_VERTEX_SHADER = """#version 330
uniform mat4 clip_from_world; uniform mat4 deformation;
in vec3 position; in vec2 uv;
out vec2 texel; out vec3 world;
void main() {
    vec4 point = deformation * vec4(position, 1.0);
    world = point.xyz / point.w;
    texel = uv;
    gl_Position = clip_from_world * vec4(world, 1.0);
}
"""

# Faces are seen from both sides, so the normal is turned to the camera; flat normals suit the packs' coarse meshes.
_FRAGMENT_SHADER = """#version 330
uniform sampler2D picture; uniform vec3 eye; uniform vec3 sun; uniform vec3 shares; uniform float cut;
in vec2 texel; in vec3 world; out vec4 color;
void main() {
    vec4 base = texture(picture, texel);
    if (base.a < cut) discard;
    vec3 normal = normalize(cross(dFdx(world), dFdy(world)));
    vec3 view = normalize(eye - world);
    if (dot(normal, view) < 0.0) normal = -normal;
    float light = shares.x + shares.y * max(dot(normal, sun), 0.0) + shares.z * dot(normal, view);
    color = vec4(min(base.rgb * light, 1.0), 1.0);
}
"""

_SCREEN_SHADER = """#version 330
void main() { gl_Position = vec4(vec2((gl_VertexID << 1) & 2, gl_VertexID & 2) * 2.0 - 1.0, 0.0, 1.0); }
"""

# One column of views, rows from the top, out of a 4 × 4 atlas that OpenGL draws from the bottom.
_SHRINK_SHADER = """#version 330
uniform sampler2D atlas; uniform int size; uniform int times;
out vec4 color;
void main() {
    ivec2 pixel = ivec2(gl_FragCoord.xy);
    int view = pixel.y / size, row = size - 1 - pixel.y % size;
    ivec2 corner = (ivec2(view % 4, view / 4) * size + ivec2(pixel.x, row)) * times;
    vec4 sum = vec4(0.0);
    for (int y = 0; y < times; ++y) for (int x = 0; x < times; ++x) sum += texelFetch(atlas, corner + ivec2(x, y), 0);
    color = sum / float(times * times);
}
"""


@dataclass(frozen=True)
class OrbitRecipe:
    """What distinguishes one rendered orbit of a prop from another.

    Attributes:
        elevation_deg: Of all cameras.
        azimuth_deg: Where the ring starts, measured from the prop's front.
        deformation: (4, 4) projective map of the prop in its unit sphere: planes stay planes, so that it is exact for
            coarse meshes too; None: as it is.
        scale: Radius of its bounding sphere after that.
        offset: (3,) where its centre is in the world.
        ambient: Share of light without direction.
        sun: Share of a far light.
        headlight: Share of a light at the camera.
        sun_direction: (3,) unit vector towards the far light, in the world.
    """

    elevation_deg: float
    azimuth_deg: float = 0.0
    deformation: NDArray[np.float64] | None = None
    scale: float = 1.0
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ambient: float = 1.0
    sun: float = 0.0
    headlight: float = 0.0
    sun_direction: tuple[float, float, float] = (0.0, 0.0, 1.0)

    def applied(self, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """(4, 4) from the prop to the world, for its points (P, 3): deformed, scaled to its size and placed."""
        deformation = np.eye(4) if self.deformation is None else self.deformation
        homogeneous = points @ deformation[:, :3].T + deformation[:, 3]
        deformed = homogeneous[:, :3] / homogeneous[:, 3:]
        centre = (deformed.max(axis=0) + deformed.min(axis=0)) / 2
        framed = np.eye(4)
        framed[:3, 3] = -centre
        framed[:3] *= self.scale / np.linalg.norm(deformed - centre, axis=1).max()
        framed[:3, 3] += self.offset
        applied: NDArray[np.float64] = framed @ deformation
        return applied


def held_out_recipe(prop_id: str, index: int) -> OrbitRecipe:
    """Orbit `index` of a prop of validation or test: undistorted.

    The even ones start at the prop's front and are unlit; the odd ones start anywhere and are lit.
    """
    rng = _rng(prop_id, index)
    elevation = rng.uniform(0, MAX_ELEVATION_DEG)
    if index % 2 == 0:
        return OrbitRecipe(elevation)
    azimuth = rng.uniform(0, 360)
    return OrbitRecipe(elevation, azimuth, ambient=0.5, sun=0.4, headlight=0.2, sun_direction=_sun(rng))


def training_recipe(prop_id: str, index: int) -> OrbitRecipe:
    """Orbit `index` of a training prop: random elevation, start, proportions, size and light, repeatable."""
    rng = _rng(prop_id, index)
    elevation = rng.uniform(0, MAX_ELEVATION_DEG)
    # Half of the rings keep a camera exactly at the front, where most pictures are taken from.
    azimuth = 0.0 if rng.random() < 0.5 else rng.uniform(0, 360 / DEFAULT_VIEWS)
    deformation = _deformation(rng) if rng.random() < DEFORMED_SHARE else None
    scale, offset = _place(rng)
    if rng.random() < 0.4:
        return OrbitRecipe(elevation, azimuth, deformation, scale, offset)
    ambient, sun, headlight = rng.uniform(0.35, 0.8), rng.uniform(0.1, 0.6), rng.uniform(0, 0.35)
    return OrbitRecipe(elevation, azimuth, deformation, scale, offset, ambient, sun, headlight, _sun(rng))


def _place(rng: np.random.Generator) -> tuple[float, tuple[float, float, float]]:
    """Size and place of a training prop.

    Most fill their pictures exactly. People's pictures are cut out by what is seen in them (`im3d.views.framing`), so
    the rest are larger, smaller and off the axis: else the elevation is read from the border, which then misleads.
    """
    if rng.random() < EXACT_SHARE:
        return 1.0, (0.0, 0.0, 0.0)
    x, y, z = rng.uniform(-1, 1, 3) * (0.07, 0.07, 0.1)
    return rng.uniform(0.7, 1.12), (float(x), float(y), float(z))


def recipe_of(prop_id: str, split: Split, index: int, draw: int = 0) -> OrbitRecipe:
    """Orbit `index` of a prop; training props look different in every draw."""
    if split == "train":
        return training_recipe(prop_id, index + DRAW_STRIDE * draw)
    return held_out_recipe(prop_id, index)


def _deformation(rng: np.random.Generator) -> NDArray[np.float64]:
    """Tapered, leant and stretched at random: a few thousand props are learnt by heart otherwise.

    Most props are symmetric, so what would skew their left against their right is rare and small.
    """
    deformation = np.eye(4)
    # Narrower above or below, before or behind, left or right: the bottom row divides.
    deformation[3, :3] = rng.uniform(-1, 1, 3) * (0.15, 0.2, 0.25) * (rng.random(3) < (0.15, 0.4, 0.6))
    lean = np.eye(4)
    lean[1, 2] = rng.normal(0, 0.12) * (rng.random() < 0.5)
    lean[0, 1:3] = rng.normal(0, 0.08, 2) * (rng.random() < 0.2)
    stretch = np.diag([*np.exp(rng.uniform(-0.35, 0.35, 3)), 1.0])
    return stretch @ lean @ deformation


class OrbitRenderer:
    """Renders orbits of 16 views with a context of its own; use it from one thread, and `release` it.

    Args:
        size: Side of the views in pixels.
        device: Which of the machine's EGL devices draws.
    """

    def __init__(self, size: int, device: int = 0) -> None:
        import moderngl

        self.size = size
        self._gl = moderngl.create_context(standalone=True, backend="egl", device_index=device)
        self._program = self._gl.program(_VERTEX_SHADER, _FRAGMENT_SHADER)
        self._shrink = self._gl.program(_SCREEN_SHADER, _SHRINK_SHADER)
        side = 4 * size * SUPERSAMPLING
        self._atlas = self._gl.texture((side, side), 4)
        self._target = self._gl.framebuffer([self._atlas], self._gl.depth_renderbuffer((side, side)))
        self._column = self._gl.framebuffer([self._gl.texture((size, DEFAULT_VIEWS * size), 4)])
        self._screen = self._gl.vertex_array(self._shrink, [])
        self._triangles = moderngl.TRIANGLES
        self._depth_test = moderngl.DEPTH_TEST

    @property
    def device_name(self) -> str:
        """What draws, as the driver names it."""
        return str(self._gl.info["GL_RENDERER"])

    def release(self) -> None:
        """Frees the context and all it holds."""
        self._gl.release()

    def render(self, prop: Prop, recipes: list[OrbitRecipe]) -> NDArray[np.uint8]:
        """(len(recipes), 16, size, size, 4) uint8, premultiplied RGBA, rows from the top."""
        vertices = prop.world_vertices()
        parts = [self._upload(part, v) for part, v in zip(prop.parts, vertices, strict=True)]
        points = np.concatenate(vertices)
        views = [self._orbit(parts, points, recipe) for recipe in recipes]
        for part in parts:
            for resource in part[:-1]:
                resource.release()
        return np.stack(views)

    def _upload(self, part: Any, vertices: NDArray[np.float32]) -> tuple[Any, Any, Any, Any, float]:
        gl = self._gl
        uv = part.uv if part.uv is not None else np.zeros((len(vertices), 2), np.float32)
        points = gl.buffer(np.ascontiguousarray(np.concatenate([vertices, uv], axis=1), dtype="f4").tobytes())
        faces = gl.buffer(part.faces.astype("u4").tobytes())
        if part.texture is None:
            colour = bytes(round(255 * min(max(c, 0.0), 1.0)) for c in part.color) + b"\xff"
            picture = gl.texture((1, 1), 4, colour)
        else:
            image = Image.open(io.BytesIO(part.texture)).convert("RGBA").transpose(Image.Transpose.FLIP_TOP_BOTTOM)
            picture = gl.texture(image.size, 4, image.tobytes())
            picture.build_mipmaps()
        array = gl.vertex_array(self._program, [(points, "3f 2f", "position", "uv")], faces)
        return array, picture, points, faces, 0.5 if part.alpha else -1.0

    def _orbit(self, parts: list[Any], points: NDArray[np.float32], recipe: OrbitRecipe) -> NDArray[np.uint8]:
        deformation = recipe.applied(points)
        program, side = self._program, self.size * SUPERSAMPLING
        self._target.use()
        self._target.viewport = (0, 0, 4 * side, 4 * side)
        self._target.clear(0, 0, 0, 0)
        self._gl.enable(self._depth_test)
        program["deformation"].write(deformation.T.astype("f4").tobytes())
        program["sun"].value = recipe.sun_direction
        program["shares"].value = (recipe.ambient, recipe.sun, recipe.headlight)
        for k in range(DEFAULT_VIEWS):
            view = look_at_origin(recipe.azimuth_deg + 360 * k / DEFAULT_VIEWS, recipe.elevation_deg, RADIUS)
            program["clip_from_world"].write((_PROJECTION @ view).T.astype("f4").tobytes())
            program["eye"].value = tuple((-view[:3, :3].T @ view[:3, 3]).tolist())
            self._target.viewport = (k % 4 * side, k // 4 * side, side, side)
            for array, picture, _, _, cut in parts:
                picture.use(0)
                program["cut"].value = cut
                array.render()
        self._column.use()
        self._gl.disable(self._depth_test)
        self._atlas.use(0)
        self._shrink["size"].value, self._shrink["times"].value = self.size, SUPERSAMPLING
        self._screen.render(self._triangles, vertices=3)
        pixels = np.frombuffer(self._column.read(components=4), np.uint8)
        return pixels.reshape(DEFAULT_VIEWS, self.size, self.size, 4)


def _projection() -> NDArray[np.float64]:
    """Clip coordinates from OpenCV camera coordinates; y turns up, as OpenGL wants it."""
    f = 1 / math.tan(math.radians(DEFAULT_FOV_DEG) / 2)
    near, far = RADIUS - 1.4, RADIUS + 1.4
    return np.array(
        [
            [f, 0, 0, 0],
            [0, -f, 0, 0],
            [0, 0, (far + near) / (far - near), -2 * far * near / (far - near)],
            [0, 0, 1, 0],
        ]
    )


_PROJECTION = _projection()


def _rng(prop_id: str, index: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{prop_id}#{index}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _sun(rng: np.random.Generator) -> tuple[float, float, float]:
    azimuth, height = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1.4)
    return math.cos(height) * math.sin(azimuth), -math.cos(height) * math.cos(azimuth), math.sin(height)
