"""A package, because some dependency installs another one of this name."""
