"""The napari plugin: the library's functions behind buttons, in threads that never block it."""
