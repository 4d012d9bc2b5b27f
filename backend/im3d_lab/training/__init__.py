"""Training of the orbit generators: packs of props → rendered orbits → weights."""
