"""Every node of the pack, in menu order."""

from __future__ import annotations

from .budget import nodes as budget
from .budget import nodes_report as budget_report
from .compare import nodes as compare
from .interpolation import nodes as interpolation
from .loading import nodes as loading
from .loading import nodes_checkpoint as loading_checkpoint
from .loading import nodes_save as loading_save
from .memory import nodes as memory
from .memory import nodes_files as memory_files
from .memory import nodes_report as memory_report
from .prompts import nodes as prompts
from .render import nodes as render
from .sampling import nodes as sampling
from .spatial import nodes as spatial
from .spatial import nodes_camera as spatial_camera
from .spatial import nodes_clip as spatial_clip
from .spatial import nodes_files as spatial_files
from .spatial import nodes_mirage as spatial_mirage
from .video import nodes as video
from .video import nodes_film as video_film

NODE_CLASSES: list = [
    *loading.NODES,
    *loading_checkpoint.NODES,
    *loading_save.NODES,
    *memory.NODES,
    *memory_files.NODES,
    *memory_report.NODES,
    *sampling.NODES,
    *budget.NODES,
    *budget_report.NODES,
    *prompts.NODES,
    *interpolation.NODES,
    *video.NODES,
    *video_film.NODES,
    *render.NODES,
    *compare.NODES,
    *spatial_camera.NODES,
    *spatial.NODES,
    *spatial_files.NODES,
    *spatial_clip.NODES,
    *spatial_mirage.NODES,
]
