"""`mini`: the bundled generator, small enough for a processor. `generator` is its public face."""
