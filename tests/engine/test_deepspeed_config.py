import json

import pytest

from attvae.engine.batch import divide
from attvae.engine.config import EngineConfig
from attvae.engine.deepspeed_config import deepspeed_config

STAGE_3 = EngineConfig(stage=3, micro_batch=4, precision="bf16", offload_optimizer=True, offload_parameters=True)


def test_the_whole_of_it() -> None:
    """Whatever changes here, changes runs: every value is one that DeepSpeed would otherwise choose."""
    assert deepspeed_config(EngineConfig(micro_batch=4), divide(96, 3, 4), 3) == {
        "train_batch_size": 96,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 8,
        "gradient_clipping": 0.0,
        "prescale_gradients": False,
        "zero_optimization": {
            "stage": 1,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": 50_000_000,
            "use_multi_rank_bucket_allreduce": True,
            "allgather_partitions": True,
            "allgather_bucket_size": 50_000_000,
            "compute_grad_norm": True,
            "ignore_unused_parameters": False,
            "round_robin_gradients": False,
            "parameter_alignment": False,
            "elastic_checkpoint": False,
            "load_from_fp32_weights": True,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "bf16": {
            "enabled": False,
            "check_grad_overflow": True,
            "immediate_grad_update": False,
            "bf16_master_weights_and_grads": False,
            "bf16_optimizer_states": False,
        },
        "fp16": {
            "enabled": False,
            "auto_cast": False,
            "loss_scale": 0,
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


def test_stage_3_in_bf16_with_everything_on_the_cpu() -> None:
    found = deepspeed_config(STAGE_3, divide(96, 3, 4), 3)
    assert [name for name in ("torch_autocast", "bf16", "fp16") if found[name]["enabled"]] == ["bf16"]
    zero = found["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["stage3_param_persistence_threshold"] == 100_000
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "cpu"
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "plain", "precision": "bf16"}, "use engine.name=zero, or engine.precision=autocast"),
        ({"stage": 1, "precision": "fp16"}, "stages 2 and 3, but engine.stage=1: use one of those"),
        ({"stage": 0, "offload_optimizer": True}, "needs ZeRO stage 1, 2 or 3, but engine.stage=0"),
        ({"name": "plain", "offload_optimizer": True}, "needs ZeRO stage 1, 2 or 3, but engine.name=plain"),
        ({"stage": 2, "offload_parameters": True}, "needs ZeRO stage 3, but engine.stage=2"),
    ],
)
def test_a_stage_that_an_option_excludes(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig.model_validate(given)
