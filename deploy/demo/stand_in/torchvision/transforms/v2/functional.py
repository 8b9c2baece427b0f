"""Names that vision models import and language models never call."""
