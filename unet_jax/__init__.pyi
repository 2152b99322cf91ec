from .checkpoint import load as load
from .data.folder import read_images as read_images
from .errors import InputError as InputError
from .instances import InstanceSettings as InstanceSettings
from .instances import find_cells as find_cells
from .model import Model as Model
from .network import UNet as UNet
from .overlap_tile import predict_tiled as predict_tiled
