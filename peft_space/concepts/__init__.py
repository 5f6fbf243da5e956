"""What to erase, what to keep, and the public images to stand on."""

from .concept import Concept
from .images import PublicImages, load_public_images
from .retain import Retain
from .sources import ImageSource, image_source

__all__ = ["Concept", "ImageSource", "PublicImages", "Retain", "image_source", "load_public_images"]
