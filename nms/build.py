"""python -m nms.build: compile the kernels of nms/src for this machine."""

import sys

import native

if __name__ == "__main__":
    sys.exit(native.main(["nms"]))
