"""Table, cube and cabinet, built from primitives with MjSpec."""
