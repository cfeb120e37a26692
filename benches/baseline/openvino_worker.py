"""OpenVINO as a baseline in rounds (worker.py): optimum-intel's stateful export of a causal model, with its fused attention.

The export computes the last position's logits alone, as OpenVINO GenAI slices them, and of those the one that is the reward.
"""
import worker


def prepare(request):
    if worker.is_classifier(request):
        raise worker.Unsupported("its stateful export is of causal models, and this is a classifier")
    worker.exported(request, "openvino", lambda folder: export(request["model"], folder))
    settings = {"batch": len(request["ids"]), "prefix_cache": request["shared_prefix"] > 0, "kv_cache": "default", "threads": request["threads"]}
    axes = [
        ["batch", worker.batches(request)], ["kv_cache", ["default", {"float32": "f32", "bfloat16": "bf16"}[request["dtype"]]]],
        ["threads", worker.threads(request)],
    ]
    if request["shared_prefix"]:
        axes.insert(1, ["prefix_cache", [True, False]])
    return settings, axes


def export(model, folder):
    import numpy as np
    import openvino as ov
    from openvino import opset13 as op
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(model, export=True, compile=False, stateful=True, load_in_8bit=False).model
    node = next(result for result in model.get_results() if "logits" in result.input(0).get_source_output().get_names())
    while node.get_type_name() != "MatMul":
        node = node.input(0).get_source_output().get_node()

    def cut(input, first, last, axis):
        first, last, axis = (np.array([value], np.int64) for value in (first, last, axis))
        input.replace_source_output(op.slice(input.get_source_output(), first, last, np.array([1], np.int64), axis).output(0))

    cut(node.input(0), -1, np.iinfo(np.int64).max, 1)
    # The rows of the matrix are ids where it is transposed, else its columns.
    cut(node.input(1), 0, 1, 0 if node.get_attributes()["transpose_b"] else 1)
    model.validate_nodes_and_infer_types()
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)


class OpenVino(worker.Engine):
    def __init__(self, request, settings):
        import numpy as np
        import openvino as ov
        import openvino.properties as props
        import openvino.properties.hint as hints

        self.np, self.request, self.settings = np, request, settings
        options = {
            props.inference_num_threads(): settings["threads"], props.num_streams(): 1,
            hints.performance_mode(): hints.PerformanceMode.LATENCY,
            hints.inference_precision(): ov.Type.bf16 if request["dtype"] == "bfloat16" else ov.Type.f32,
        }
        if settings["kv_cache"] != "default":
            options["KV_CACHE_PRECISION"] = settings["kv_cache"]
        core = ov.Core()
        model = core.compile_model(core.read_model(worker.export_path(request, "openvino") / "model.xml"), "CPU", options)
        self.inference = model.create_infer_request()
        self.name = f"openvino {ov.__version__.split('-')[0]}"
        self.device = f"{core.get_property('CPU', 'FULL_DEVICE_NAME')}, {settings['threads']} threads"

    def feed(self, rows, past, beams):
        """The rewards of rows that follow `past` tokens of these beams."""
        np, ids = self.np, self.np.array(rows, self.np.int64)
        count, length = ids.shape
        positions = np.tile(np.arange(past, past + length, dtype=np.int64), (count, 1))
        inputs = {
            "input_ids": ids, "attention_mask": np.ones((count, past + length), np.int64), "position_ids": positions,
            "beam_idx": np.array(beams, np.int32),
        }
        return self.inference.infer(inputs)[0][:, -1, 0].astype(float).tolist()

    def score(self):
        rewards, batch = [], self.settings["batch"]
        if not self.settings["prefix_cache"]:
            for part in worker.parts(self.request["ids"], batch):
                self.inference.reset_state()
                rewards += self.feed(part, 0, range(len(part)))
            return rewards
        for prefix, rests in worker.groups(self.request):
            # A batch takes the state with it: the next one needs the prefix again.
            for part in worker.parts(rests, batch):
                self.inference.reset_state()
                self.feed([prefix], 0, [0])
                rewards += self.feed(part, len(prefix), [0] * len(part))
        return rewards


if __name__ == "__main__":
    worker.main(prepare, OpenVino)
