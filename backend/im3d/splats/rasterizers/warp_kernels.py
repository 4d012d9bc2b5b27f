"""The kernels of the Warp rasteriser: one source, compiled at first use for the GPU or the processor it runs on.

A thread renders a strip of four neighbouring pixels of a tile, front to back. There is no shared memory and nothing
else that only a GPU has, so what is tested on a processor is what runs on a GPU. Strips instead of single pixels let
four pixels share each splat's data, and its gradients reach memory in a quarter of the atomic additions.

The gradient also goes front to back: with S = Σ_c g_c·C_c + g_T·T per pixel (final colour and transmittance times their
gradients), what lies behind a splat contributes S minus the running prefix. Transmittances are thereby the very numbers
of the forward pass, and no lists per pixel are kept.
"""

import warp as wp

from im3d.splats.rasterizers import project

wp.config.log_level = wp.LOG_WARNING  # the banner and the notices of compilation would go to stdout, which others read
wp.set_module_options({"enable_backward": False})  # gradients are written by hand

TILE = 16
STRIP = 4  # pixels of one row that a thread renders
STRIPS = TILE * TILE // STRIP  # threads of a tile
STRIPS_A_ROW = TILE // STRIP
MIN_ALPHA = project.MIN_ALPHA
MAX_ALPHA = project.MAX_ALPHA
# exp(-5.6) < 1/255: no splat of opacity ≤ 1 is visible beyond, and the exponential need not be computed.
MAX_EXPONENT = 5.6


@wp.func
def tile_box(centre: wp.vec2, extent: wp.vec2, tiles: int) -> wp.vec4i:
    """Tiles x0 … x1 and y0 … y1 (exclusive) that a visible splat touches, of `tiles` along each side."""
    side = float(tiles)
    low = (centre - extent) / float(TILE)
    high = (centre + extent) / float(TILE)
    return wp.vec4i(
        int(wp.clamp(wp.floor(low[0]), 0.0, side)),
        int(wp.clamp(wp.floor(high[0]) + 1.0, 0.0, side)),
        int(wp.clamp(wp.floor(low[1]), 0.0, side)),
        int(wp.clamp(wp.floor(high[1]) + 1.0, 0.0, side)),
    )


@wp.kernel
def count_tiles(
    centres: wp.array(dtype=wp.vec2),
    extents: wp.array(dtype=wp.vec2),
    visible: wp.array(dtype=wp.bool),
    tiles: int,
    counts: wp.array(dtype=wp.int32),
) -> None:
    """How many tiles each splat touches in its camera; a thread for each of C·N splats."""
    i = wp.tid()
    touched = 0
    if visible[i]:
        box = tile_box(centres[i], extents[i], tiles)
        touched = (box[1] - box[0]) * (box[3] - box[2])
    counts[i] = touched


@wp.kernel
def write_keys(
    centres: wp.array(dtype=wp.vec2),
    extents: wp.array(dtype=wp.vec2),
    depth_bits: wp.array(dtype=wp.int32),
    counts: wp.array(dtype=wp.int32),
    ends: wp.array(dtype=wp.int64),
    count: int,
    tiles: int,
    keys: wp.array(dtype=wp.int64),
    splats: wp.array(dtype=wp.int32),
) -> None:
    """One slot for each tile that a splat touches: its key sorts by camera, then tile, then depth.

    The bits of positive floats sort as the floats do. `ends` is the running sum of `counts`; `count` is N.
    """
    i = wp.tid()
    if counts[i] > 0:
        slot = int(ends[i]) - counts[i]
        box = tile_box(centres[i], extents[i], tiles)
        first = (i // count) * tiles * tiles
        for ty in range(box[2], box[3]):
            for tx in range(box[0], box[1]):
                keys[slot] = (wp.int64(first + ty * tiles + tx) << wp.int64(32)) | wp.int64(depth_bits[i])
                splats[slot] = i
                slot += 1


@wp.func
def strip_origin(thread: int, tiles: int) -> wp.vec2i:
    """Pixel column and row at which a thread's strip starts."""
    tile = (thread // STRIPS) % (tiles * tiles)
    strip = thread % STRIPS
    return wp.vec2i(
        (tile % tiles) * TILE + (strip % STRIPS_A_ROW) * STRIP, (tile // tiles) * TILE + strip // STRIPS_A_ROW
    )


@wp.func
def raw_alphas(offset: wp.vec2, conic: wp.vec3, opacity: float) -> wp.vec4:
    """opacity · exp(−σ) at the four pixels of a strip whose first lies at `offset` from the centre; 0 if invisible."""
    raw = wp.vec4(0.0)
    for k in range(STRIP):
        x = offset[0] + float(k)
        y = offset[1]
        sigma = (0.5 * conic[0] * x + conic[1] * y) * x + 0.5 * conic[2] * y * y
        if sigma < MAX_EXPONENT:
            alpha = opacity * wp.exp(-sigma)
            if alpha >= MIN_ALPHA:
                raw[k] = alpha
    return raw


@wp.kernel
def draw(
    centres: wp.array(dtype=wp.vec2),
    conics: wp.array(dtype=wp.vec3),
    opacities: wp.array(dtype=wp.float32),
    colors: wp.array(dtype=wp.vec3),
    offsets: wp.array(dtype=wp.int64),
    splats: wp.array(dtype=wp.int32),
    tiles: int,
    size: int,
    end_below: float,
    image: wp.array(dtype=wp.vec3),
    through: wp.array(dtype=wp.float32),
    last: wp.array(dtype=wp.int32),
) -> None:
    """Blends a strip of pixels until the transmittance of all four is below `end_below`; C · tiles² · STRIPS threads.

    Slots of tile t of camera c are offsets[l] … offsets[l + 1] with l = c · tiles² + t. `last` receives the slot at
    which the strip was finished.
    """
    thread = wp.tid()
    tile = thread // STRIPS
    origin = strip_origin(thread, tiles)
    camera = tile // (tiles * tiles)
    first_splat = camera * opacities.shape[0]
    first_pixel = (camera * size + origin[1]) * size + origin[0]
    transmittance = wp.vec4(0.0)
    for k in range(STRIP):
        if origin[0] + k < size and origin[1] < size:
            transmittance[k] = 1.0
    red = wp.vec4(0.0)
    green = wp.vec4(0.0)
    blue = wp.vec4(0.0)
    slot = int(offsets[tile])
    end = int(offsets[tile + 1])
    while slot < end and wp.max(transmittance) >= end_below:
        i = splats[slot]
        n = i - first_splat
        offset = wp.vec2(float(origin[0]) + 0.5, float(origin[1]) + 0.5) - centres[i]
        alpha = wp.min(raw_alphas(offset, conics[i], opacities[n]), wp.vec4(MAX_ALPHA))
        weight = wp.cw_mul(alpha, transmittance)
        color = colors[n]
        red += weight * color[0]
        green += weight * color[1]
        blue += weight * color[2]
        transmittance -= weight
        slot += 1
    last[thread] = slot
    for k in range(STRIP):
        if origin[0] + k < size and origin[1] < size:
            image[first_pixel + k] = wp.vec3(red[k], green[k], blue[k])
            through[first_pixel + k] = transmittance[k]


@wp.kernel
def draw_gradient(
    centres: wp.array(dtype=wp.vec2),
    conics: wp.array(dtype=wp.vec3),
    opacities: wp.array(dtype=wp.float32),
    colors: wp.array(dtype=wp.vec3),
    offsets: wp.array(dtype=wp.int64),
    splats: wp.array(dtype=wp.int32),
    tiles: int,
    size: int,
    image: wp.array(dtype=wp.vec3),
    through: wp.array(dtype=wp.float32),
    last: wp.array(dtype=wp.int32),
    g_image: wp.array(dtype=wp.vec3),
    g_through: wp.array(dtype=wp.float32),
    g_centres: wp.array(dtype=wp.vec2),
    g_conics: wp.array(dtype=wp.vec3),
    g_opacities: wp.array(dtype=wp.float32),
    g_colors: wp.array(dtype=wp.vec3),
) -> None:
    """Adds the gradients of a strip of pixels to those of the splats; threads and slots as in `draw`."""
    thread = wp.tid()
    tile = thread // STRIPS
    origin = strip_origin(thread, tiles)
    camera = tile // (tiles * tiles)
    first_splat = camera * opacities.shape[0]
    first_pixel = (camera * size + origin[1]) * size + origin[0]
    transmittance = wp.vec4(0.0)
    behind = wp.vec4(0.0)  # Σ gradient · what this and all later splats still contribute
    g_red = wp.vec4(0.0)
    g_green = wp.vec4(0.0)
    g_blue = wp.vec4(0.0)
    for k in range(STRIP):
        if origin[0] + k < size and origin[1] < size:
            g = g_image[first_pixel + k]
            transmittance[k] = 1.0
            g_red[k] = g[0]
            g_green[k] = g[1]
            g_blue[k] = g[2]
            behind[k] = wp.dot(g, image[first_pixel + k]) + g_through[first_pixel + k] * through[first_pixel + k]
    for slot in range(int(offsets[tile]), last[thread]):
        i = splats[slot]
        n = i - first_splat
        offset = wp.vec2(float(origin[0]) + 0.5, float(origin[1]) + 0.5) - centres[i]
        conic = conics[i]
        raw = raw_alphas(offset, conic, opacities[n])
        if wp.max(raw) > 0.0:
            weight = wp.cw_mul(wp.min(raw, wp.vec4(MAX_ALPHA)), transmittance)
            color = colors[n]
            own = wp.cw_mul(weight, color[0] * g_red + color[1] * g_green + color[2] * g_blue)
            behind -= own
            transmittance -= weight
            # Moments of the gradient with respect to σ along the strip.
            m0 = 0.0
            m1 = 0.0
            m2 = 0.0
            for k in range(STRIP):
                if raw[k] <= MAX_ALPHA:  # the clamp has no gradient
                    x = offset[0] + float(k)
                    g_sigma = behind[k] * raw[k] / (1.0 - raw[k]) - own[k]
                    m0 += g_sigma
                    m1 += g_sigma * x
                    m2 += g_sigma * x * x
            y = offset[1]
            wp.atomic_add(
                g_centres, i, wp.vec2(-(conic[0] * m1 + conic[1] * y * m0), -(conic[2] * y * m0 + conic[1] * m1))
            )
            wp.atomic_add(g_conics, i, wp.vec3(0.5 * m2, m1 * y, 0.5 * m0 * y * y))
            wp.atomic_add(g_opacities, n, -m0 / opacities[n])
            wp.atomic_add(g_colors, n, wp.vec3(wp.dot(weight, g_red), wp.dot(weight, g_green), wp.dot(weight, g_blue)))
