"""Container drivers over one argument builder. Kept empty: the shim imports this package and must stay
small."""
