"""The DeepSpeed configuration of a run, all of it. Pure: imports neither torch nor deepspeed.

Every default that matters is written out: several have changed between releases.
"""

from typing import Any

from attvae.engine.batch import BatchPlan
from attvae.engine.config import EngineConfig

ELEMENTS_AT_ONCE = 50_000_000
"""Bucket of a reduction or a gather, in elements. Gradients are copied into one that is allocated in full: 0.2 GB."""


def deepspeed_config(config: EngineConfig, batch: BatchPlan, ranks: int) -> dict[str, Any]:
    """What `deepspeed.initialize` gets, for JSON as it is."""
    return {
        "train_batch_size": batch.micro_batch * batch.accumulation * ranks,
        "train_micro_batch_size_per_gpu": batch.micro_batch,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": 0.0,  # our optimizer clips, as a part of its update
        "prescale_gradients": False,
        "zero_optimization": _zero(config),
        # The optimizer is ours: element-wise, so any partition of the parameters gives the same update.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {
            "enabled": config.precision == "autocast",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # gradients are summed over the ranks in fp32
        },
        "bf16": {
            "enabled": config.precision == "bf16",
            "check_grad_overflow": True,
            "immediate_grad_update": False,
            "bf16_master_weights_and_grads": False,
            "bf16_optimizer_states": False,
        },
        "fp16": {
            "enabled": config.precision == "fp16",
            "auto_cast": False,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "consecutive_hysteresis": False,
            "min_loss_scale": 1,
            "fp16_master_weights_and_grads": False,
        },
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "seq_parallel_communication_data_type": "fp32",
        "disable_allgather": False,
        "dump_state": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
    }


def _zero(config: EngineConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": config.stage,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": ELEMENTS_AT_ONCE,
        "use_multi_rank_bucket_allreduce": True,
        "allgather_partitions": True,
        "allgather_bucket_size": ELEMENTS_AT_ONCE,
        "compute_grad_norm": True,
        "ignore_unused_parameters": False,
        "round_robin_gradients": False,
        "parameter_alignment": False,
        "elastic_checkpoint": False,
        "load_from_fp32_weights": True,
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True, "ratio": 1.0}
    if config.stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": config.persistent_parameters,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": False,
            "stage3_module_granularity_threshold": 0,
            "stage3_use_all_reduce_for_fetch_params": False,
            "sub_group_size": 10**12,  # one step of a parameter group is one call of the optimizer, which counts them
            "zero_hpz_partition_size": 1,
            "zero_quantized_weights": False,
            "zero_quantized_gradients": False,
            "memory_efficient_linear": False,
        }
        if config.offload_parameters:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return zero
