"""EditAR at run time: edit pictures from instructions with a bundle of ONNX graphs, in NumPy.

    editor = editar_rt.load("engines/demo")
    editor.edit("photo.png", "make the ball red").save("out.png")

Importing this brings NumPy and Pillow; engines load when a bundle is opened. PyTorch is never needed.
"""

from editar_rt.editor import Editor, load
from editar_rt.errors import EditarError
from editar_rt.generation.sampling import Sampling
from editar_rt.results import EditOptions, EditResult
from editar_rt.version import __version__

__all__ = ["EditOptions", "EditResult", "EditarError", "Editor", "Sampling", "__version__", "load"]
