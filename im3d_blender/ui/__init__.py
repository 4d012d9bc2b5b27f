"""Drawing: panels read properties and memory, never the disk. Operators are named by their identifiers."""
