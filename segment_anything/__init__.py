"""Promptable 3D segmentation networks: SAM-Med3D, FastSAM3D and small relatives."""

from segment_anything.build_sam3D import (
    build_from_checkpoint,
    build_sam3D,
    network_configs,
    sam_model_registry3D,
)
from segment_anything.checkpoint import (
    CheckpointError,
    checkpoint_payload,
    fingerprint,
    open_checkpoint,
    read_checkpoint,
    require_decoder,
    student_payload,
)
from segment_anything.checkpoint_fit import load_checkpoint
from segment_anything.config import (
    ConfigError,
    DecoderConfig,
    EncoderConfig,
    PromptConfig,
    SamConfig,
)
from segment_anything.crop_predictor import CropPredictor, Prompted
from segment_anything.decoding import NO_CLICK, Interaction, box_points, decode_points, upsample
from segment_anything.engine import (
    ENGINES,
    Engine,
    EngineError,
    InferenceEngine,
    NotFiniteError,
    autocast,
    is_finite,
    require_engine,
)
from segment_anything.modeling import Sam3D
from segment_anything.refinement import encode_image, refined

__all__ = [
    "ENGINES",
    "NO_CLICK",
    "CheckpointError",
    "ConfigError",
    "CropPredictor",
    "DecoderConfig",
    "EncoderConfig",
    "Engine",
    "EngineError",
    "InferenceEngine",
    "Interaction",
    "NotFiniteError",
    "PromptConfig",
    "Prompted",
    "Sam3D",
    "SamConfig",
    "autocast",
    "box_points",
    "build_from_checkpoint",
    "build_sam3D",
    "checkpoint_payload",
    "decode_points",
    "encode_image",
    "fingerprint",
    "is_finite",
    "load_checkpoint",
    "network_configs",
    "open_checkpoint",
    "read_checkpoint",
    "refined",
    "require_decoder",
    "require_engine",
    "sam_model_registry3D",
    "student_payload",
    "upsample",
]
