"""A downloads page from ported weights: a static site that anyone can check, and the check itself.

`porting.release.index` says what a site consists of; `python -m porting.release build|verify|serve` are the commands.
"""
