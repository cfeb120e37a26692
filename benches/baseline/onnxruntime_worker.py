"""ONNX Runtime as a baseline in rounds (worker.py): the graph of onnxruntime-genai's builder, in float32.

The graph computes the last position's logits alone. On CPUs ONNX Runtime has no bfloat16.
"""
import json
import subprocess
import sys

import worker


def prepare(request):
    if request["dtype"] != "float32":
        raise worker.Unsupported(f"ONNX Runtime has no {request['dtype']} on CPUs")
    if worker.is_classifier(request):
        raise worker.Unsupported("its builder takes causal models, and this is a classifier")
    worker.exported(request, "onnxruntime", lambda folder: export(request["model"], folder))
    settings = {"batch": worker.batches(request)[0], "spinning": True, "prefix_cache": request["shared_prefix"] > 0, "threads": request["threads"]}
    axes = [["batch", worker.batches(request)], ["spinning", [True, False]], ["threads", worker.threads(request)]]
    if request["shared_prefix"]:
        axes.insert(0, ["prefix_cache", [True, False]])
    return settings, axes


def export(model, folder):
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    options = ["-i", model, "-o", str(folder), "-p", "fp32", "-e", "cpu", "--extra_options", "prune_lm_head=true"]
    subprocess.run(builder + options, check=True)


class OnnxRuntime(worker.Engine):
    def __init__(self, request, settings):
        import numpy as np
        import onnxruntime as ort

        self.np, self.request, self.settings = np, request, settings
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = settings["threads"], 1
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings["spinning"])))
        folder = worker.export_path(request, "onnxruntime")
        self.session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
        self.heads, self.head_dim = decoder["num_key_value_heads"], decoder["head_size"]
        self.inputs = [input.name for input in self.session.get_inputs()]
        self.past = [name for name in self.inputs if name.startswith("past")]
        self.name = f"onnxruntime {ort.__version__}"
        self.device = f"CPU, {settings['threads']} threads"

    def feed(self, rows, past, outputs):
        """The outputs of rows that follow keys and values."""
        np, ids = self.np, self.np.array(rows, self.np.int64)
        count, length = ids.shape
        past = past or [np.zeros((count, self.heads, 0, self.head_dim), np.float32)] * len(self.past)
        start = past[0].shape[2]
        inputs = {"input_ids": ids, "attention_mask": np.ones((count, start + length), np.int64), **dict(zip(self.past, past))}
        if "position_ids" in self.inputs:
            inputs["position_ids"] = np.tile(np.arange(start, start + length, dtype=np.int64), (count, 1))
        return self.session.run(outputs, inputs)

    def rewards(self, rows, past=None):
        return self.feed(rows, past, ["logits"])[0][:, -1, 0].astype(float).tolist()

    def score(self):
        batch = self.settings["batch"]
        if not self.settings["prefix_cache"]:
            return [reward for part in worker.parts(self.request["ids"], batch) for reward in self.rewards(part)]
        rewards, present = [], [name.replace("past_key_values", "present") for name in self.past]
        for prefix, rests in worker.groups(self.request):
            cache = self.feed([prefix], None, present)
            # Its attention refuses batches that follow cached keys and values.
            rewards += [reward for rest in rests for reward in self.rewards([rest], cache)]
        return rewards


if __name__ == "__main__":
    worker.main(prepare, OnnxRuntime)
