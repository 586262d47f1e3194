"""Growth inside other people's trainers: callbacks for Lightning and for the Hugging Face Trainer.

Both are a `Grower` that is called at the trainer's step boundaries and saved in the trainer's checkpoints.
"""

from esper_runtime.tolaria.callbacks.huggingface import huggingface_callback
from esper_runtime.tolaria.callbacks.lightning import lightning_callback

__all__ = ["huggingface_callback", "lightning_callback"]
