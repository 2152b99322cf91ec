"""The U-Net of Ronneberger, Fischer and Brox (2015) in JAX and Flax.

What is listed in `__init__.pyi` is loaded when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
