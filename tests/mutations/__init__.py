"""Ports that are wrong in one way each, and whether the verifier sees it and names the right layer.

`python -m tests.mutations --count 2000` tries a seeded sample, `--all` every one. Each mutant runs through the
verifier's own code (`porting.bitwise`, `porting.lockstep`, `porting.findings`), but only in the part of the network
that it is in, on inputs and reference activations that are kept: that is what makes one cheap.
"""
