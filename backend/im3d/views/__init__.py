"""Pictures on their way in: reading, masks, framing, and where the views of an orbit were taken from."""
