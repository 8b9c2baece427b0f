"""Names that vision models import and language models never call."""

from .functional import InterpolationMode as InterpolationMode

Compose = Normalize = Resize = ToTensor = None
