"""The peers' training: TRL, transformers' Trainer, and a plain loop."""

import sys
import time
import types

from peer_common import load_model, load_tokenizer, wait

LEARNING_RATE = 3e-4
WEIGHT_DECAY = 0.01
WARMUP_STEPS = 10
MAX_LENGTH = 512


class Meter:
    """When each optimiser step ended, how much it had of what is counted, and its loss."""

    def __init__(self, device, counted="tokens"):
        self.device, self.counted = device, counted
        self.ends, self.counts, self.losses = [], [], []
        self.pending = 0

    def count(self, number):
        self.pending += number

    def step(self):
        wait(self.device)
        self.ends.append(time.perf_counter())
        self.counts.append(self.pending)
        self.pending = 0
        if len(self.ends) == 1:
            print("step 1", file=sys.stderr, flush=True)

    def results(self, skip):
        """What is counted, a second, from the end of step `skip` to the end of the last one; none where nothing is
        left."""
        results = {"steps": len(self.ends), "loss_first": self.losses[0] if self.losses else None, "value": None}
        if len(self.ends) > skip:
            count, seconds = sum(self.counts[skip:]), self.ends[-1] - self.ends[skip - 1]
            results |= {self.counted: count, "seconds": seconds, "value": count / seconds}
        return results


def load_rows(args):
    from datasets import load_dataset

    return load_dataset("json", data_files=args.data, split="train")


def trainer_options(args, scratch):
    """What both of transformers' trainers are given."""
    return {
        "output_dir": scratch,
        "per_device_train_batch_size": args.batch,
        "gradient_accumulation_steps": args.accumulate,
        "max_steps": args.steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": WARMUP_STEPS,
        "weight_decay": WEIGHT_DECAY,
        "bf16": args.precision == "bf16",
        "gradient_checkpointing": False,
        "train_sampling_strategy": "group_by_length" if args.group_by_length else "random",
        "dataloader_pin_memory": args.device == "cuda",
        "use_cpu": args.device == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def real_tokens(inputs):
    mask = inputs.get("attention_mask")
    return inputs["input_ids"].numel() if mask is None else int(mask.sum())


def watch(trainer, meter, count=real_tokens):
    """Counts what enters the loss and notes the time at the end of every optimiser step."""
    compute_loss = trainer.compute_loss

    def counting(model, inputs, *more, **named):
        meter.count(count(inputs))
        return compute_loss(model, inputs, *more, **named)

    trainer.compute_loss = counting
    clock(trainer, meter)


def clock(trainer, meter, each_step=0):
    """Notes the time at the end of every step, and adds `each_step` to what it counts."""
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            meter.count(each_step)
            meter.step()

        def on_log(self, _args, _state, _control, logs=None, **__):
            if "loss" in (logs or {}):
                meter.losses.append(float(logs["loss"]))

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Clock())


def run_sft(args, scratch):
    return supervise(args, scratch, load_model(args))


def supervise(args, scratch, model, peft_config=None):
    """TRL's SFTTrainer. With --own-loss the model's own loss replaces TRL's: the same gradients, without TRL's metrics
    of every step and its chunked output layer. TRL has no switch for it; a user overrides `compute_loss`."""
    from transformers import Trainer
    from trl import SFTConfig, SFTTrainer

    options = trainer_options(args, scratch)
    if args.packing != "none":
        options |= {"packing": True, "packing_strategy": args.packing}
    rows = load_rows(args)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(max_length=MAX_LENGTH, **options),
        train_dataset=rows,
        processing_class=load_tokenizer(args),
        peft_config=peft_config,
    )
    if args.own_loss:
        trainer.compute_loss = types.MethodType(Trainer.compute_loss, trainer)
    meter = Meter(args.device)
    watch(trainer, meter)
    trainer.train()
    data_tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
    trained = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    return meter.results(args.skip) | {"data_rows": len(rows), "data_tokens": data_tokens, "trained": trained}


def run_tutorial(args, scratch):
    """As many tutorials do it: transformers' Trainer, every row padded to the full length, all positions labels."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    tokenizer = load_tokenizer(args)

    def encode(rows):
        texts = [p + c + tokenizer.eos_token for p, c in zip(rows["prompt"], rows["completion"])]
        encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_LENGTH)
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": encoded["input_ids"],
        }

    rows = load_rows(args)
    encoded = rows.map(encode, batched=True, remove_columns=rows.column_names)
    trainer = Trainer(
        model=load_model(args),
        args=TrainingArguments(**trainer_options(args, scratch)),
        train_dataset=encoded,
        data_collator=default_data_collator,
    )
    meter = Meter(args.device)
    watch(trainer, meter)
    trainer.train()
    data_tokens = sum(sum(mask) for mask in encoded["attention_mask"])
    return meter.results(args.skip) | {"data_rows": len(rows), "data_tokens": data_tokens}


def blocks(args):
    """All documents one after another, each closed by EOS, cut into blocks of MAX_LENGTH tokens; and their number."""
    import torch

    tokenizer = load_tokenizer(args)
    with open(args.data, encoding="utf-8") as lines:
        texts = [line.rstrip("\n") for line in lines]
    ids = [id for row in tokenizer(texts)["input_ids"] for id in [*row, tokenizer.eos_token_id]]
    whole = len(ids) // MAX_LENGTH * MAX_LENGTH
    return torch.tensor(ids[:whole]).view(-1, MAX_LENGTH), {"data_rows": len(texts), "data_tokens": len(ids)}


def run_pretrain(args, _scratch):
    """A plain loop: blocks, autocast, fused AdamW."""
    import torch

    data, counts = blocks(args)
    model = load_model(args).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / WARMUP_STEPS))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    meter = Meter(args.device)
    for step in range(args.steps):
        picked = order[torch.arange(step * args.batch, (step + 1) * args.batch) % len(order)]
        batch = data[picked].to(args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        meter.losses.append(float(loss))
        meter.count(batch.numel())
        meter.step()
    return meter.results(args.skip) | counts
