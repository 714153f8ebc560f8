"""What the collection's modules share (module_utils), as a package: `__init__.py` in the wheel."""
