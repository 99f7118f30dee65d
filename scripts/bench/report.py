"""Tables in Markdown of what was measured."""

import statistics

from cases import CASES
from ours import PPO_PARTS

HEAD = """\
| case | peer | ours min–median–max | peer min–median–max | ratio of medians (single rounds) | share of bound |
|---|---|---|---|---|---|"""
MEMORY_HEAD = """\
| case | peer | ours MiB | peer MiB | ours / peer |
|---|---|---|---|---|"""
WORK_HEAD = """\
| case | peer | ours: tokens of the rows | peer | ours: first loss | peer | ours: parameters trained | peer |
|---|---|---|---|---|---|---|---|"""
WAYS_HEAD = """\
| case | peak MiB | share of full fine-tuning's | tokens/s | times as fast |
|---|---|---|---|---|"""
PARTS_HEAD = f"""\
| case | {' | '.join(f'{part} s' for part in PPO_PARTS)} |
|---|{'---|' * len(PPO_PARTS)}"""
NOTES = """\
In tokens/s but for start-up, in seconds, reward, in pairs/s, ppo, in episodes/s, and cai, in responses/s: answers,
critiques and revisions, timed without the loading of the model. Tokens/s count real tokens, never padding; the ratio of
start-up is peer / ours, so that above 1 always means that temper is faster. In bold: the ratio to the fastest peer of a
case. Training is timed from the end of step 2 (ppo: of the first update) to the end of the last step, by the clock,
loading of data included. The bound is what the matrix products of the model's shapes alone would allow at the rate
measured for them in the same round; it counts the output layer for every token, where fine-tuning needs it only for
completions, so a share may exceed 1. It has no shape for reward, ppo and cai. With an adapter it leaves out the products
for the gradients of the model's own weights, which do not train, and those of the adapter; where layers are computed
again, it counts them once.

`TRL as shipped` has TRL's defaults for all but packing, batch size and gradient checkpointing, which is on by default
and would only cost it time. `own loss` takes the model's own loss in place of TRL's, which computes the output layer in
chunks and entropy and accuracy at every step: the same gradients, faster on a CPU. `wrapped` cuts the rows into full
blocks; `bfd 1 × 8` fits whole rows into blocks and puts one block at a time through the model, eight a step.
`RewardTrainer, by length` starts with the longest rows, in steps that are not timed, which leaves it pairs a tenth
shorter than the others'. `PPOTrainer` is experimental and in no later TRL than 1.12; its bf16 is that of `accelerate
launch --mixed_precision bf16`, which reaches only its optimiser steps. All its responses have their full length; of
cai's on our side one in a hundred ends early. cai's peer takes one prompt at a time; most of the lead is batching.

`TRL + PEFT` is SFTTrainer with a LoraConfig, over a model loaded in the precision of the case; qlora's is in bitsandbytes'
NF4 with double quantisation. Adapters are fp32 on both sides, of the same layers and rank, without dropout."""


class Runs:
    """The runs of one case, by who ran."""

    def __init__(self, case, runs):
        self.case = case
        self.runs = [run for run in runs if run["case"] == case.name]
        self.peers = [peer.name for peer in case.peers if any(run["who"] == peer.name for run in self.runs)]

    def of(self, who):
        return [run for run in self.runs if run["who"] == who]

    def values(self, who, key="value"):
        """One value a round, of the rounds that have one."""
        return {run["round"]: run[key] for run in self.of(who) if run.get(key) is not None}

    def failure(self, who):
        return next((run["error"] for run in self.of(who) if "error" in run), None)

    def median(self, who, key="value"):
        return statistics.median(self.values(who, key).values())

    def ratios(self, peer):
        """How many times as fast as the peer: of the medians, and of each round that both did."""
        ours, theirs = self.values("ours"), self.values(peer)
        if not ours or not theirs:
            return None
        sign = -1 if self.case.unit == "s" else 1
        single = [(ours[round] / theirs[round]) ** sign for round in ours.keys() & theirs.keys()]
        return (self.median("ours") / self.median(peer)) ** sign, single

    def fastest_peer(self):
        rated = [(ratios[0], peer) for peer in self.peers if (ratios := self.ratios(peer))]
        return min(rated)[1] if rated else None


def number(value):
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values):
    if len(values) == 1:
        return number(*values)
    return "–".join(number(value) for value in (min(values), statistics.median(values), max(values)))


def speed_cell(runs, who):
    if error := runs.failure(who):
        return f"failed: {error.replace('|', '/')[:160]}"
    values = runs.values(who).values()
    unit = "" if runs.case.unit == "tokens/s" else f" {runs.case.unit}"
    return spread(values) + unit if values else "—"


def ratio_cell(runs, peer):
    ratios = runs.ratios(peer)
    if ratios is None:
        return "—"
    medians, single = ratios
    text = f"{medians:.2f}"
    if peer == runs.fastest_peer():
        text = f"**{text}**"
    return f"{text} ({min(single):.2f}–{max(single):.2f})" if len(single) > 1 else text


def bound_cell(runs):
    if error := runs.failure("bound"):
        return f"failed: {error.replace('|', '/')[:80]}"
    if not runs.values("ours") or not runs.values("bound"):
        return "—"
    return f"{runs.median('ours') / runs.median('bound'):.2f}"


def speed_rows(runs):
    for at, peer in enumerate(runs.peers or [None]):
        first = at == 0
        yield [
            runs.case.name if first else "",
            peer or "—",
            speed_cell(runs, "ours") if first else "",
            speed_cell(runs, peer) if peer else "—",
            ratio_cell(runs, peer) if peer else "—",
            bound_cell(runs) if first else "",
        ]


def mebibytes(runs, who):
    values = runs.values(who, "peak_bytes")
    return statistics.median(values.values()) / 2**20 if values else None


def memory_rows(runs):
    ours = mebibytes(runs, "ours")
    for at, peer in enumerate(runs.peers or [None]):
        theirs = mebibytes(runs, peer) if peer else None
        share = f"{ours / theirs:.2f}" if ours and theirs else "—"
        name, own = (runs.case.name, number(ours) if ours else "—") if at == 0 else ("", "")
        yield [name, peer or "—", own, number(theirs) if theirs else "—", share]


def part_rows(runs):
    """What the parts of our update take: the median of the rounds."""
    if parts := runs.values("ours", "part_seconds"):
        medians = (statistics.median(seconds[part] for seconds in parts.values()) for part in PPO_PARTS)
        yield [runs.case.name, *map(number, medians)]


def work_rows(runs):
    """Whether both sides did the same: the tokens they made of the same rows, the loss of the same weights."""
    done = {who: next((run for run in runs.of(who) if "error" not in run), {}) for who in ("ours", *runs.peers)}
    if not (done["ours"].get("data") or {}).get("tokens"):
        return

    def cells(who):
        run = done[who]
        tokens, loss, trained = (run.get("data") or {}).get("tokens"), run.get("loss_first"), run.get("trained")
        return f"{tokens:,}" if tokens else "—", f"{loss:.2f}" if loss else "—", f"{trained:,}" if trained else "—"

    own = cells("ours")
    for peer in runs.peers or [None]:
        theirs = cells(peer) if peer else ("—",) * len(own)
        yield [runs.case.name, peer or "—", *(cell for pair in zip(own, theirs) for cell in pair)]


def way_rows(all_runs):
    """Ways to train one model, each beside the one that trains all of it."""
    done = {runs.case.name: runs for runs in all_runs if runs.values("ours")}
    for name, runs in done.items():
        if whole := done.get(runs.case.whole):
            peak, speed = mebibytes(runs, "ours"), runs.median("ours")
            share, times = peak / mebibytes(whole, "ours"), speed / whole.median("ours")
            yield [name, number(peak), f"{share:.2f}", number(speed), f"{times:.2f}"]


def table(head, rows):
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])


def tables(results):
    """All tables of a campaign, with the list of its cases and the machine."""
    names = {run["case"] for run in results["runs"]}
    all_runs = [Runs(case, results["runs"]) for case in CASES if case.name in names]

    def rows(make):
        return [row for runs in all_runs for row in make(runs)]

    about = [f"- {runs.case.name}: {runs.case.about}" for runs in all_runs]
    machine = [f"- {key}: {value}" for key, value in results["machine"].items()]
    parts = rows(part_rows)
    ways = list(way_rows(all_runs))
    texts = [
        table(HEAD, rows(speed_rows)), NOTES,
        "Peak memory: the resident set of the process (data-prep's peer: of all its processes); on a GPU what tensors "
        "took.",
        table(MEMORY_HEAD, rows(memory_rows)),
        *(["Ways to fine-tune one model, on our side:", table(WAYS_HEAD, ways)] if ways else ()),
        *(["What the parts of an update of ppo take on our side:", table(PARTS_HEAD, parts)] if parts else ()),
        "That both sides did the same work: tokens made of the same rows (those cut at 512 tokens overlap by one on "
        "our side; ppo's are of prompts), and the loss of the first step, from the same weights on other rows (the "
        "tutorial's is of padding too; a reward model's head is each side's own).",
        table(WORK_HEAD, rows(work_rows)),
        "The cases:", "\n".join(about), "Where and with what:", "\n".join(machine),
    ]
    return "\n\n".join(texts)
