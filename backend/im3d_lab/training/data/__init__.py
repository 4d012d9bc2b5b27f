"""Training data: orbits and grids rendered from packs, and the loaders that mix them."""
