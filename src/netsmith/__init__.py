"""Netsmith turns the trained networks you have into the network you need.

The public names are those of `__init__.pyi`; everything else may change between releases. Importing the package loads
nothing: each name brings its module when it is first used.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__.remove("make_morphable")  # what `morph` was called before 0.2.0: found, but no longer shown
