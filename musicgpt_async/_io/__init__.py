"""One kind of IO each, none knowing another."""
