"""What is measured: models, cases, and what each case is compared with."""

from dataclasses import dataclass

SFT_ROWS = 2000
PREFERENCE_ROWS = 2000
# More than any run of ppo reads: TRL's trainer takes more optimiser steps on the last batch of its data.
ROLLOUT_PROMPTS = 2048
PROMPT_TOKENS = 64
GENERATE_ROWS = 32
EPISODES = 32
# Of our side; the peer's are a case's steps.
CAI_PROMPTS = 256
# Of the cases that train an adapter, with a scale of 2.
RANK, ALPHA = 16, 32
ADAPTERS = ("lora", "qlora")

UNITS = {"start-up": "s", "reward": "pairs/s", "ppo": "episodes/s", "cai": "responses/s"}
DATA_SETS = {"pretrain": "pretrain", "reward": "preference", "ppo": "prompts", "cai": "prompts"}

MODELS = {
    "tiny": {
        "model_type": "gpt2", "n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 512, "vocab_size": 4096,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "llama-tiny": {
        "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 704, "vocab_size": 4096, "max_position_embeddings": 512,
        "attention_dropout": 0.0,
    },
    "gpt2": {
        "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    # The shape of DialoGPT-medium.
    "gpt2-medium": {
        "model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024, "vocab_size": 50257,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    # The shape of TinyLlama: 1.1 billion parameters.
    "llama-1b": {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "intermediate_size": 5632, "vocab_size": 32000, "max_position_embeddings": 2048,
        "tie_word_embeddings": False, "attention_dropout": 0.0,
    },
}
# Of the weights on disk, where that is not fp32.
STORED_PRECISION = {"llama-1b": "bf16"}


@dataclass(frozen=True)
class Peer:
    """What a user of Python would run: a name for the tables, and the arguments of peer.py."""

    name: str
    task: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One line of the comparison. `batch` is the key and value of our `train.batch_size`; `steps` are optimiser steps,
    of which the first `skip` are not timed, updates of ppo, calls of generate, or prompts of cai's peer. Without
    `all_rows` a run is one epoch of few rows. `recomputes` says what is computed again in place of kept, of a layer. A
    `large` case runs only when asked for; `whole` is the name of the one that trains all parameters of the same model."""

    name: str
    task: str
    about: str
    peers: tuple[Peer, ...]
    model: str = "tiny"
    precision: str = "fp32"
    steps: int = 10
    skip: int = 2
    batch: tuple[str, int] = ("tokens", 4096)
    new_tokens: int = 0
    all_rows: bool = True
    recomputes: str = "none"
    large: bool = False
    whole: str | None = None

    @property
    def unit(self):
        return UNITS.get(self.task, "tokens/s")

    @property
    def data_set(self):
        """The data set that our side trains on and whose text the peers read."""
        name = DATA_SETS.get(self.task, "sft")
        return name if self.all_rows else f"{name}-{self.batch[1] * self.steps}"


def packed_peers(batch):
    """TRL as it comes, and the two ways in which it is faster: the last two differ in how rows are packed."""
    rows = ("--batch", str(batch))
    one_by_one = ("--packing", "bfd", "--batch", "1", "--accumulate", str(batch), "--own-loss")
    return (
        Peer("TRL as shipped", "sft", ("--packing", "bfd", *rows)),
        Peer("TRL, own loss, wrapped", "sft", ("--packing", "wrapped", *rows, "--own-loss")),
        Peer(f"TRL, own loss, bfd 1 × {batch}", "sft", one_by_one),
    )


def by_precision(task, model, precision):
    """Name, model, precision, and the smaller sizes of the large model."""
    sizes = {"steps": 5, "batch": ("tokens", 1024)} if model == "gpt2" else {}
    return {"name": f"{task}-{model}-{precision}", "model": model, "precision": precision, **sizes}


def packed(model, precision):
    batch = 2 if model == "gpt2" else 8
    about = f"fine-tuning, rows packed: {batch * 512} tokens a step; peers in blocks of 512"
    return Case(task="sft", about=about, peers=packed_peers(batch), **by_precision("sft-packed", model, precision))


def pretrain(model, precision):
    batch = 2 if model == "gpt2" else 8
    loop = Peer("transformers loop", "pretrain", ("--batch", str(batch)))
    about = f"pre-training: {batch * 512} tokens a step; peer in blocks of 512, fused AdamW"
    return Case(task="pretrain", about=about, peers=(loop,), **by_precision("pretrain", model, precision))


def generate(model, precision):
    new_tokens, calls = (64, 1) if model == "gpt2" else (128, 3)
    sizes = ("--batch", str(GENERATE_ROWS), "--prompt", str(PROMPT_TOKENS), "--new", str(new_tokens))
    peers = tuple(
        Peer(f"model.generate, {cache} cache", "generate", (*sizes, "--cache", cache))
        for cache in ("dynamic", "static")
    )
    about = f"{GENERATE_ROWS} rows, prompts of {PROMPT_TOKENS} tokens, {new_tokens} new ones each, temperature 1"
    fields = by_precision("generate", model, precision) | {"steps": calls}
    return Case(task="generate", about=about, peers=peers, new_tokens=new_tokens, **fields)


def tutorial(precision, peers):
    about = "the same as many tutorials do it: rows padded to 512, loss on every position, 4 × 2 rows a step"
    if precision == "bf16":
        about += "; ours in bf16 against the tutorials' fp32, and against bf16"
    options = ("--batch", "4", "--accumulate", "2")
    return Case(
        name=f"sft-tutorial-tiny-{precision}", task="sft", about=about, precision=precision,
        peers=tuple(Peer(name, "tutorial", (*options, *more)) for name, more in peers),
        steps=20, batch=("sequences", 8),
    )


def reward(precision):
    peers = (
        Peer("TRL RewardTrainer", "reward", ("--batch", "8")),
        Peer("TRL RewardTrainer, by length", "reward", ("--batch", "8", "--group-by-length")),
    )
    about = (
        "training a reward model, 8 pairs a step, one epoch; peers with rows in random order and grouped by length; our "
        "count of tokens has a pair's prompt once"
    )
    return Case(
        task="reward", about=about, peers=peers, steps=25, batch=("sequences", 8), all_rows=False,
        **by_precision("reward", "tiny", precision),
    )


def ppo(precision):
    sizes = ("--batch", "8", "--accumulate", str(EPISODES // 8), "--prompt", str(PROMPT_TOKENS), "--new", "64")
    about = (
        f"{EPISODES} episodes an update, prompts of {PROMPT_TOKENS} tokens, 64 new ones each, then 4 epochs of one "
        "optimiser step; policy, reference, value and reward are models of their own"
    )
    return Case(
        task="ppo", about=about, peers=(Peer("TRL 1.12 PPOTrainer", "ppo", sizes),), steps=6, skip=1, new_tokens=64,
        **by_precision("ppo", "tiny", precision),
    )


def cai(precision):
    new_tokens = 32
    loop = Peer("loop of model.generate", "cai", ("--batch", "1", "--new", str(new_tokens)))
    about = (
        f"constitutional AI: answer, critique and revision, prompts of {PROMPT_TOKENS - 1} tokens in the chat template, "
        f"{new_tokens} new ones a turn, temperatures 0.7, 0.3 and 0.5; ours of {CAI_PROMPTS} prompts together, the "
        "peer's one prompt at a time"
    )
    return Case(
        task="cai", about=about, peers=(loop,), steps=64, new_tokens=new_tokens,
        **by_precision("cai", "tiny", precision),
    )


def adapter(task, model, precision):
    """LoRA or QLoRA, on rows packed as in sft-packed."""
    batch = 8
    names = {"lora": "LoRA", "qlora": "QLoRA, NF4 with double quantisation"}
    about = (
        f"fine-tuning with {names[task]}, of all linear layers, rank {RANK}, rows packed: {batch * 512} tokens a step; "
        "peers in blocks of 512"
    )
    rows = ("--batch", str(batch))
    one_by_one = ("--packing", "bfd", "--batch", "1", "--accumulate", str(batch))
    peers = (
        Peer("TRL + PEFT, own loss, wrapped", task, ("--packing", "wrapped", *rows, "--own-loss")),
        Peer(f"TRL + PEFT, own loss, bfd 1 × {batch}", task, (*one_by_one, "--own-loss")),
    )
    return Case(task=task, about=about, peers=peers, **by_precision(task, model, precision))


def memory(task):
    """Ways to fine-tune one model, with the same settings."""
    model, tokens = "gpt2-medium", 512
    about = (
        f"{task} of 355 million parameters in bf16, {tokens} tokens a step, layers computed again in the backward pass"
    )
    return Case(
        name=f"memory-{model}-{task}", task=task, about=about, peers=(), model=model, precision="bf16", steps=5,
        batch=("tokens", tokens), recomputes="layer", large=True, whole=f"memory-{model}-finetune",
    )


UNPACKED = Case(
    name="sft-unpacked-tiny-fp32", task="sft",
    about="fine-tuning, 8 sequences a step, one epoch; peer without packing, rows grouped by length",
    peers=(Peer("TRL, own loss, by length", "sft", ("--batch", "8", "--own-loss", "--group-by-length")),),
    steps=25, batch=("sequences", 8), all_rows=False,
)
QLORA_1B = Case(
    name="qlora-llama-1b-bf16", task="qlora",
    about="QLoRA of 1.1 billion parameters, 512 tokens a step, layers computed again in the backward pass",
    peers=(), model="llama-1b", precision="bf16", steps=3, skip=1, batch=("tokens", 512), recomputes="layer",
    large=True,
)
DATA_PREP = Case(
    name="data-prep", task="data-prep",
    about="20 MB of text, a document a line, to Parquet; ours the whole process, which also cleans the text and drops "
    "repeats; peer without its imports",
    peers=(Peer("datasets map", "data-prep"),),
)
START_UP = Case(
    name="start-up", task="start-up",
    about="from the start of the process to the end of the first step of sft, of 512 tokens; the peer finds its tokens in "
    "its cache",
    peers=(Peer("TRL, own loss, wrapped", "sft", ("--packing", "wrapped", "--batch", "1", "--own-loss")),),
    steps=1, batch=("tokens", 512),
)

CASES = (
    packed("tiny", "fp32"),
    packed("tiny", "bf16"),
    packed("llama-tiny", "bf16"),
    packed("gpt2", "bf16"),
    UNPACKED,
    tutorial("fp32", (("Trainer, padded", ()),)),
    tutorial("bf16", (("Trainer, padded, fp32", ("--precision", "fp32")), ("Trainer, padded, bf16", ()))),
    pretrain("tiny", "fp32"),
    pretrain("llama-tiny", "bf16"),
    pretrain("gpt2", "bf16"),
    generate("tiny", "fp32"),
    generate("tiny", "bf16"),
    generate("gpt2", "bf16"),
    reward("fp32"),
    reward("bf16"),
    ppo("fp32"),
    ppo("bf16"),
    cai("fp32"),
    cai("bf16"),
    adapter("lora", "tiny", "fp32"),
    adapter("lora", "tiny", "bf16"),
    adapter("lora", "llama-tiny", "bf16"),
    adapter("qlora", "tiny", "bf16"),
    adapter("qlora", "llama-tiny", "bf16"),
    memory("finetune"),
    memory("lora"),
    memory("qlora"),
    QLORA_1B,
    DATA_PREP,
    START_UP,
)
