"""The peers' adapters: PEFT under TRL's SFTTrainer, over a model in full or in bitsandbytes' 4 bits."""

import sys

from peer_common import load_model
from peer_training import supervise


def lora_config(args):
    from peft import LoraConfig

    return LoraConfig(
        r=args.rank, lora_alpha=args.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def compute_type(args):
    import torch

    return torch.bfloat16 if args.precision == "bf16" else torch.float32


def run_lora(args, scratch):
    """The model is loaded in the precision that it computes in; PEFT keeps the adapter in fp32."""
    return supervise(args, scratch, load_model(args, compute_type(args)), lora_config(args))


def run_qlora(args, scratch):
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    torch.manual_seed(1)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_type(args),
    )
    model = AutoModelForCausalLM.from_pretrained(
        args.model, quantization_config=quantization, device_map={"": args.device}, dtype=compute_type(args)
    )
    if not any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        sys.exit("no layer of the model is in 4 bits")
    return supervise(args, scratch, model, lora_config(args))
