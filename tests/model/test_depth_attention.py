"""The two scales of depth-wise attention's scores."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attvae.model.config import DepthAttentionConfig
from attvae.model.depth_attention import DecoderAttention, EncoderAttention


@pytest.mark.parametrize(("scale", "factor"), [("published", 1.0), ("learned", 0.7 / 2)])
@pytest.mark.parametrize("path", [DecoderAttention, EncoderAttention])
def test_scale_of_the_scores(path: type[DecoderAttention] | type[EncoderAttention], scale: str, factor: float) -> None:
    """Against torch's attention; a key width of 4 gives 1 / sqrt(4)."""
    torch.manual_seed(0)
    attention = path(6, DepthAttentionConfig.model_validate({"key_dim": 4, "layer_norm": False, "scale": scale}))
    nn.init.ones_(attention.gamma)
    if attention.scale is not None:
        nn.init.constant_(attention.scale, 0.7)
    assert sum(name == "scale" for name, _ in attention.named_parameters()) == (scale == "learned")
    condition, query, keys, values = (torch.randn(*n, 2, c, 3, 3) for n, c in (((), 6), ((), 4), ((5,), 4), ((5,), 6)))

    attended = F.scaled_dot_product_attention(
        query.permute(0, 2, 3, 1)[..., None, :],
        keys.permute(1, 3, 4, 0, 2),
        values.permute(1, 3, 4, 0, 2),
        scale=factor,
    )[..., 0, :].permute(0, 3, 1, 2)
    if isinstance(attention, DecoderAttention):
        found, expected = attention(condition, query, [*keys], [*values])[1], condition + attended
    else:
        found, expected = attention(query, [*keys], [*values]), values[0] + attended
    torch.testing.assert_close(found, expected)
