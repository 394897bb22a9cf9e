"""nopair turns a text-to-image model into a few-step image editor, without a single before/after pair.

    from nopair import Editor, load_image, save_image

This module knows the few names a user of the library needs, and the version. It imports no torch until a name that
needs it is used, so that the command line and small clients start at once.
"""

from typing import TYPE_CHECKING, Any

from nopair.errors import NopairError

if TYPE_CHECKING:
    from nopair.data.images import load_image, save_image
    from nopair.editor import Editor

__version__ = "0.1.0"

__all__ = ["Editor", "NopairError", "__version__", "load_image", "save_image"]


def __getattr__(name: str) -> Any:
    """The public names that need torch, imported when first asked for (PEP 562)."""
    if name == "Editor":
        from nopair.editor import Editor

        return Editor
    if name in ("load_image", "save_image"):
        from nopair.data import images

        return getattr(images, name)
    raise AttributeError(f"module 'nopair' has no attribute {name!r}")
