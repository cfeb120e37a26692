"""vLLM for CPUs as a baseline in rounds (worker.py): its pooling models, which read one reward per sequence.

A causal model is first written as the classifier whose score head is row 0 of its output matrix: generating would multiply by the
whole matrix. The prefix cache is emptied before each run. zentorch, AMD's build of the matmuls, is used where it is installed and
not switched off; so are tcmalloc and Intel's OpenMP, which vLLM asks for.
"""
import glob
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import sys

import worker


def prepare(request):
    # The weights of a classifier are used as they are.
    if not worker.is_classifier(request):
        worker.exported(request, "classifier", lambda folder: write_classifier(request, folder))
    zentorch = [True, False] if importlib.util.find_spec("zentorch") else [False]
    allocators = ["tcmalloc", "system"] if tcmalloc() else ["system"]
    settings = {
        "allocator": allocators[0], "zentorch": zentorch[0], "prefix_cache": True, "compile": True, "threads": request["threads"],
    }
    axes = [
        ["zentorch", zentorch], ["allocator", allocators], ["compile", [True, False]], ["prefix_cache", [True, False]],
        ["threads", worker.threads(request)],
    ]
    return settings, axes


def write_classifier(request, folder):
    """The classifier whose score head is row 0 of a causal model's output matrix."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    source, tensors = pathlib.Path(request["model"]), {}
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
    config = worker.config_of(request)
    if not config["architectures"][0].endswith("ForCausalLM") or "model.embed_tokens.weight" not in tensors:
        raise worker.Unsupported(f"{config['architectures'][0]} is neither a causal model nor a classifier")
    rows = tensors.pop("lm_head.weight", tensors["model.embed_tokens.weight"])
    save_file({**tensors, "score.weight": rows[:1].clone()}, folder / "model.safetensors", {"format": "pt"})
    name = config["architectures"][0].replace("ForCausalLM", "ForSequenceClassification")
    config |= {"architectures": [name], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    for path in source.glob("*.json"):
        if path.name != "config.json" and not path.name.endswith(".index.json"):
            (folder / path.name).symlink_to(path)


def tcmalloc():
    """The library, from this environment's neighbour folder or the system."""
    places = [f"{sys.prefix}/../tcmalloc/usr/lib/*", "/usr/lib/*", "/usr/lib64", "/usr/lib"]
    found = [path for place in places for path in sorted(glob.glob(f"{place}/libtcmalloc_minimal.so.4"))]
    return os.path.abspath(found[0]) if found else None


def environment(settings):
    openmp = os.path.join(sys.prefix, "lib", "libiomp5.so")
    preload = [tcmalloc()] if settings["allocator"] == "tcmalloc" else []
    preload += [openmp] if os.path.exists(openmp) else []
    return {
        "LD_PRELOAD": ":".join(preload),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{settings['threads'] - 1}",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


class Vllm(worker.Engine):
    def __init__(self, request, settings):
        if not settings["zentorch"]:
            # Importing it fails, also for vLLM.
            sys.modules["zentorch"] = None
        import torch
        import vllm
        from vllm import LLM, PoolingParams
        from vllm.config import PoolerConfig
        from vllm.inputs import TokensPrompt
        from vllm.platforms import current_platform

        model = request["model"] if worker.is_classifier(request) else str(worker.export_path(request, "classifier"))
        self.llm = LLM(
            model=model, runner="pooling", convert="classify", dtype=request["dtype"], max_model_len=len(request["ids"][0]) + 1,
            enable_prefix_caching=settings["prefix_cache"], enable_chunked_prefill=True, enforce_eager=not settings["compile"],
            hf_overrides={"head_dtype": request["dtype"]}, pooler_config=PoolerConfig(use_activation=False),
        )
        self.params = PoolingParams(use_activation=False)
        self.prompts = [TokensPrompt(prompt_token_ids=ids) for ids in request["ids"]]
        zentorch = f", zentorch {importlib.metadata.version('zentorch')}" if settings["zentorch"] else ""
        self.name = f"vllm {vllm.__version__}, torch {torch.__version__}{zentorch}"
        self.device = f"CPU, {settings['threads']} threads, {type(current_platform).__name__}"

    def reset(self):
        self.llm.reset_prefix_cache()

    def score(self):
        outputs = self.llm.encode(self.prompts, pooling_params=self.params, pooling_task="classify", use_tqdm=False)
        return [float(output.outputs.data.reshape(-1)[0]) for output in outputs]


if __name__ == "__main__":
    worker.main(prepare, Vllm, environment)
