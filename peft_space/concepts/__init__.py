"""What to erase, what to keep, and the public images to stand on."""

from .concept import Concept
from .images import PublicImages, load_public_images
from .retain import Retain

__all__ = ["Concept", "PublicImages", "Retain", "load_public_images"]
