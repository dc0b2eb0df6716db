"""`python -m porting`: the list of commands."""

from __future__ import annotations

COMMANDS = {
    "porting.convert": "port a source to PyTorch, prove it against TensorFlow, emit it",
    "porting.verify": "hold an existing .pth to its source, bit for bit and layer by layer",
    "porting.export": "write PyTorch weights back as a TensorFlow checkpoint or a Keras .weights.h5",
    "porting.evaluate": "measure top-1 and top-5 on a folder of images, in one process or several",
    "porting.trace": "keep what TensorFlow computes in a file, to verify where there is no TensorFlow",
    "porting.inspect": "show what a source holds, and which network it fits",
    "porting.release": "build a downloads page from ported weights, check one, look at one",
}


def main() -> None:
    print("Port TensorFlow Xception weights to PyTorch, and prove it layer by layer.\n")
    for name, purpose in COMMANDS.items():
        print(f"  python -m {name:<18} {purpose}")
    print("\nEach takes --help.")


if __name__ == "__main__":
    main()
