"""UV atlas and the textures baked into it. `bake` and `unwrap` are the public faces."""
