"""Networks by name, and their costs. Each takes pixels in [0, 1] and normalizes them itself."""

from .build import MODELS, build_model
from .cost import Profile, profile, solve_bottleneck

__all__ = ["MODELS", "Profile", "build_model", "profile", "solve_bottleneck"]
