"""Models on disk: the catalogue, downloads, what is kept in memory, networks shared by several parts."""
