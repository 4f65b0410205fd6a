"""Modules for one kind of IO each: network, files, databases, processes."""
