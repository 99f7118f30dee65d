"""The peers' reward model and PPO, both of TRL."""

import os
import sys

from peer_common import load_model, load_score_model, load_tokenizer
from peer_training import MAX_LENGTH, Meter, clock, load_rows, trainer_options, watch

PPO_EPOCHS = 4
PPO_LEARNING_RATE = 3e-6


def run_reward(args, scratch):
    """RewardTrainer, which turns dropout off. It pads a batch to its longest row; with --group-by-length these are of
    like length, by their letters."""
    from trl import RewardConfig, RewardTrainer

    rows, options = load_rows(args), trainer_options(args, scratch)
    if args.group_by_length:
        rows = rows.map(lambda row: {"length": len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"]))})
        # The sampler sees only the columns that are left.
        options["remove_unused_columns"] = False
    trainer = RewardTrainer(
        model=load_score_model(args, args.model),
        args=RewardConfig(max_length=MAX_LENGTH, **options),
        train_dataset=rows,
        processing_class=load_tokenizer(args),
    )
    meter = Meter(args.device, "pairs")
    watch(trainer, meter, lambda inputs: inputs["input_ids"].shape[0] // 2)
    trainer.train()
    both = (trainer.train_dataset[name] for name in ("chosen_ids", "rejected_ids"))
    data_tokens = sum(len(ids) for column in both for ids in column)
    return meter.results(args.skip) | {"data_rows": len(trainer.train_dataset), "data_tokens": data_tokens}


def run_ppo(args, scratch):
    """The experimental PPOTrainer of TRL 1.12, the last release with one. No response ends early."""
    # It takes no notice of its own bf16: this is how `accelerate launch --mixed_precision` says it.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if args.precision == "bf16" else "no"
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = load_tokenizer(args)
    prompts = load_rows(args).map(lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]})
    prompts = prompts.remove_columns("prompt")
    if any(len(ids) != args.prompt for ids in prompts["input_ids"]):
        sys.exit(f"a prompt does not have {args.prompt} tokens")
    episodes = args.batch * args.accumulate
    options = trainer_options(args, scratch) | {"learning_rate": PPO_LEARNING_RATE}
    trainer = PPOTrainer(
        model=load_model(args),
        ref_model=load_model(args),
        reward_model=load_score_model(args, args.score_model),
        value_model=load_score_model(args, args.score_model),
        args=PPOConfig(
            total_episodes=args.steps * episodes, num_ppo_epochs=PPO_EPOCHS, num_mini_batches=1, kl_coef=0.05,
            local_rollout_forward_batch_size=episodes, response_length=args.new, temperature=0.7, stop_token=None,
            num_sample_generations=0, **options,
        ),
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    meter = Meter(args.device, "episodes")
    clock(trainer, meter, each_step=episodes)
    trainer.train()
    taken = {int(state["step"]) for state in trainer.optimizer.state.values()}
    if taken != {args.steps * PPO_EPOCHS}:
        sys.exit(f"{taken} optimiser steps, not {PPO_EPOCHS} an update")
    return meter.results(args.skip) | {"data_rows": len(prompts), "data_tokens": len(prompts) * args.prompt}
