"""python -m roialign.build: compile the kernels of roialign/src for this machine."""

import sys

import native

if __name__ == "__main__":
    sys.exit(native.main(["roialign"]))
