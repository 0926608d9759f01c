"""Trains an agent: the same as ``reverie train``."""

import sys

from reverie.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
