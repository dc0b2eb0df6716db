"""Readers of the containers that Xception weights come in. None of them imports TensorFlow or torch."""

from __future__ import annotations

from porting.sources.base import TensorSource, TensorSpec

__all__ = ["TensorSource", "TensorSpec"]
