"""From splats to a clean, textured mesh: depth maps → distance field → surface → UV atlas → texture → GLB."""
