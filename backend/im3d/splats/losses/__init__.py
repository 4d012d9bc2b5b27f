"""Image losses. `view_losses` is the public face; kernels are chosen inside."""
