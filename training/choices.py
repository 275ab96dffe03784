"""Words that recipes and commands choose from. They are kept apart so that a command's help loads no PyTorch."""

DEVICES = ("auto", "cpu", "cuda")
WAYS = ("auto", "none", "ddp", "fsdp")
"""In which several processes train one model (`training.distributed`)."""
PRECISIONS = ("float32", "bfloat16", "float16")
"""Of products under autocast; weights stay float32."""
FSDP_PRECISIONS = ("float32", "bfloat16")
"""That sharded layers are put together in."""
VIEWS = ("reference", "whole")
"""Parts of a picture that a teacher sees (`training.data.features`)."""
