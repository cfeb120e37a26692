"""Hugging Face transformers as a baseline in rounds (worker.py): its own forward pass with sdpa attention, by the modes of hf.py.

    batched     one logit of the last token, no cache
    prefix      the keys and values of a shared prefix computed once, by hand
    compiled    batched, by torch.compile with frozen weights
    card        one conversation at a time, as model cards show it
"""
import copy

import worker


def prepare(request):
    shared = ["prefix"] if request["shared_prefix"] else []
    modes = shared + ["batched", "compiled", "card"]
    settings = {"mode": modes[0], "batch": worker.batches(request)[0], "threads": request["threads"]}
    return settings, [["batch", worker.batches(request)], ["mode", modes], ["threads", worker.threads(request)]]


class Transformers(worker.Engine):
    def __init__(self, request, settings):
        import pathlib
        import torch
        import transformers
        from hf import Model, in_words

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(settings["threads"])
        self.torch, self.transformers, self.request, self.batch = torch, transformers, request, settings["batch"]
        self.model = Model(pathlib.Path(request["model"]), request["dtype"], "cpu")
        self.name = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.device = in_words(self.model.device)
        self.ids = torch.tensor(request["ids"])
        self.mode = {"prefix": self.prefix, "batched": self.batched, "compiled": self.compiled, "card": self.card}[settings["mode"]]
        if settings["mode"] == "compiled":
            import torch._inductor.config

            torch._inductor.config.freezing = True
            self.forward = torch.compile(self.logits, dynamic=False)

    def score(self):
        with self.torch.inference_mode():
            return self.mode()

    def batched(self):
        return [reward for part in self.ids.split(self.batch) for reward in self.model.batched(part)]

    def card(self):
        return [reward for part in self.ids.split(1) for reward in self.model.card(part)]

    def logits(self, ids, **options):
        last = {} if self.model.classifier else {"logits_to_keep": 1}
        logits = self.model.model(input_ids=ids, **last, **options).logits
        return logits[:, 0] if self.model.classifier else logits[:, -1, 0]

    def compiled(self):
        return [reward for part in self.ids.split(self.batch) for reward in self.forward(part, use_cache=False).float().tolist()]

    def prefix(self):
        rewards = []
        for prefix, rests in worker.groups(self.request):
            cache = self.transformers.DynamicCache(config=self.model.model.config)
            self.model.model.model(input_ids=self.torch.tensor([prefix]), past_key_values=cache, use_cache=True)
            for part in worker.parts(rests, self.batch):
                own = copy.deepcopy(cache)
                own.batch_repeat_interleave(len(part))
                rewards += self.logits(self.torch.tensor(part), past_key_values=own, use_cache=True).float().tolist()
        return rewards


if __name__ == "__main__":
    worker.main(prepare, Transformers)
