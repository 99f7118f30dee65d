"""What all of the peers' tasks need. Heavy imports stand in functions, so that each task imports what it uses."""


def wait(device):
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def load_model(args, dtype=None):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    return AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype or torch.float32).to(args.device)


def load_score_model(args, path):
    """A model with one score for each token; a language model gets a new head."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    return model.to(args.device)


def load_tokenizer(args):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(args.model)
