"""Settings of a run, as frozen dataclasses that check themselves.

A configuration is plain Python: variants are made with :func:`dataclasses.replace`, stored as JSON
with :func:`to_dict`, and read back with :func:`from_dict`, which is strict: an unknown or misspelt
key is an error that suggests the right one.
"""

from mesaopt.config.checks import require_config, require_count, require_whole
from mesaopt.config.language import AutoEncoderConfig, LanguageModelConfig
from mesaopt.config.models import (
    FORGETTING_MIXERS,
    MergedAttentionConfig,
    MixerName,
    ModelConfig,
    OwnModelConfig,
    small_transformer,
)
from mesaopt.config.reading import (
    differences,
    flat,
    from_dict,
    in_words,
    override,
    parse_assignments,
    parse_value,
    to_dict,
    with_objects,
)
from mesaopt.config.run import (
    NetworkConfig,
    RunConfig,
    TrainConfig,
)
from mesaopt.config.tasks import (
    ARProcessConfig,
    FewShotConfig,
    GeneratedTaskConfig,
    LinearSystemConfig,
    Matrix,
    NonlinearSystemConfig,
    Numbers,
    OwnTaskConfig,
    PartiallyObservedConfig,
    SlotName,
    StartName,
    TaskConfig,
    TokenSlot,
    as_matrix,
    check_slots,
    stacked,
)
from mesaopt.config.token_tasks import (
    ContinuousMQARConfig,
    CopyingConfig,
    MADConfig,
    MADName,
    MQARConfig,
    ParityConfig,
    RegBenchConfig,
    TextConfig,
    TokenTaskConfig,
)

__all__ = [
    "FORGETTING_MIXERS",
    "ARProcessConfig",
    "AutoEncoderConfig",
    "ContinuousMQARConfig",
    "CopyingConfig",
    "FewShotConfig",
    "GeneratedTaskConfig",
    "LanguageModelConfig",
    "LinearSystemConfig",
    "MADConfig",
    "MADName",
    "MQARConfig",
    "Matrix",
    "MergedAttentionConfig",
    "MixerName",
    "ModelConfig",
    "NetworkConfig",
    "NonlinearSystemConfig",
    "Numbers",
    "OwnModelConfig",
    "OwnTaskConfig",
    "ParityConfig",
    "PartiallyObservedConfig",
    "RegBenchConfig",
    "RunConfig",
    "SlotName",
    "StartName",
    "TaskConfig",
    "TextConfig",
    "TokenSlot",
    "TokenTaskConfig",
    "TrainConfig",
    "as_matrix",
    "check_slots",
    "differences",
    "flat",
    "from_dict",
    "in_words",
    "override",
    "parse_assignments",
    "parse_value",
    "require_config",
    "require_count",
    "require_whole",
    "small_transformer",
    "stacked",
    "to_dict",
    "with_objects",
]
