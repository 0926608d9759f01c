"""Turns the shapes in the package's annotations into checks, for every test: this must precede its first import."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test workers share two cores; more threads only wait

from jaxtyping import install_import_hook

install_import_hook("reverie", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
