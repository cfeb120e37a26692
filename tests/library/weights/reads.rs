//! Good checkpoints: every value is where it belongs, on every rank.

use std::ops::Range;

use kudos::internals::config::{Head, ModelConfig};
use kudos::internals::shard::Shard;
use kudos::internals::weights::{Dtype, HostTensor, LayerTensors, ModelTensors, WeightBytes};

use super::folder::{
    Folder, Tensor, Tensors, biased, classifier, config, safetensors, shapes, tensor, tensors, value,
};

fn rows(tensor: &HostTensor) -> Vec<Vec<f32>> {
    (0..tensor.rows())
        .map(|row| {
            let mut out = vec![f32::NAN; tensor.cols()];
            tensor.row_to_f32(row, &mut out);
            out
        })
        .collect()
}

/// The expected values of a part of a named tensor.
fn expected(config: &ModelConfig, name: &str, rows: Range<usize>, cols: Range<usize>) -> Vec<Vec<f32>> {
    let (_, shape) = shapes(config).into_iter().find(|(found, _)| found == name).unwrap();
    let width = *shape.last().unwrap();
    rows.map(|row| cols.clone().map(|col| value(name, row * width + col)).collect()).collect()
}

#[test]
fn one_file_and_many_give_the_same_weights_in_every_dtype() {
    let config = biased();
    for dtype in ["F32", "F16", "BF16"] {
        let tensors = tensors(&config, dtype);
        for folder in [Folder::with(&tensors), Folder::sharded(&tensors, 3)] {
            let model = folder.open(&config).unwrap();
            assert!(model.warnings.is_empty(), "{:?}", model.warnings);
            assert_eq!(model.layers.len(), 2);
            let layer = &model.layers[1];
            let named = |tensor: &HostTensor, name: &str| {
                assert_eq!(tensor.name(), name);
                assert_eq!(
                    rows(tensor),
                    expected(&config, name, 0..tensor.rows(), 0..tensor.cols()),
                    "{name}"
                );
            };
            named(&model.embedding, "model.embed_tokens.weight");
            named(&model.final_norm, "model.norm.weight");
            assert_eq!((model.head.rows(), model.head.cols()), (1, 10));
            named(&model.head, "lm_head.weight");
            named(&layer.input_norm, "model.layers.1.input_layernorm.weight");
            named(&layer.mlp_norm, "model.layers.1.post_attention_layernorm.weight");
            for (index, name) in ["q", "k", "v"].into_iter().enumerate() {
                named(&layer.qkv[index], &format!("model.layers.1.self_attn.{name}_proj.weight"));
                let bias = &layer.qkv_bias.as_ref().unwrap()[index];
                named(bias, &format!("model.layers.1.self_attn.{name}_proj.bias"));
            }
            for (index, name) in ["gate", "up"].into_iter().enumerate() {
                named(&layer.gate_up[index], &format!("model.layers.1.mlp.{name}_proj.weight"));
                let bias = &layer.gate_up_bias.as_ref().unwrap()[index];
                named(bias, &format!("model.layers.1.mlp.{name}_proj.bias"));
            }
            named(&layer.o, "model.layers.1.self_attn.o_proj.weight");
            named(layer.o_bias.as_ref().unwrap(), "model.layers.1.self_attn.o_proj.bias");
            named(&layer.down, "model.layers.1.mlp.down_proj.weight");
            named(layer.down_bias.as_ref().unwrap(), "model.layers.1.mlp.down_proj.bias");
        }
    }
}

#[test]
fn each_rank_gets_its_part_and_rank_zero_the_output_biases() {
    let config = biased();
    let folder = Folder::sharded(&tensors(&config, "BF16"), 2);
    for ranks in [1, 2, 4] {
        let (q, ffn) = (24 / ranks, 8 / ranks);
        for rank in 0..ranks {
            let model = folder.open_rank(&config, rank, ranks).unwrap();
            let layer = &model.layers[0];
            // Two kv heads of width 6: among four ranks, each is held by two.
            let kv_width = 6 * (2 / ranks).max(1);
            let kv_start = if ranks == 4 { rank / 2 * 6 } else { rank * kv_width };
            let part = |tensor: &HostTensor, name: &str, part_rows, part_cols| {
                let name = format!("model.layers.0.{name}");
                assert_eq!(
                    rows(tensor),
                    expected(&config, &name, part_rows, part_cols),
                    "{name}, {rank} of {ranks}"
                );
            };
            let (q, kv) = (q * rank..q * (rank + 1), kv_start..kv_start + kv_width);
            let ffn = ffn * rank..ffn * (rank + 1);
            let (qkv_bias, gate_up_bias) =
                (layer.qkv_bias.as_ref().unwrap(), layer.gate_up_bias.as_ref().unwrap());
            part(&layer.qkv[0], "self_attn.q_proj.weight", q.clone(), 0..10);
            part(&layer.qkv[1], "self_attn.k_proj.weight", kv.clone(), 0..10);
            part(&layer.qkv[2], "self_attn.v_proj.weight", kv.clone(), 0..10);
            part(&qkv_bias[0], "self_attn.q_proj.bias", 0..1, q.clone());
            part(&qkv_bias[1], "self_attn.k_proj.bias", 0..1, kv.clone());
            part(&qkv_bias[2], "self_attn.v_proj.bias", 0..1, kv);
            part(&layer.o, "self_attn.o_proj.weight", 0..10, q);
            part(&layer.gate_up[0], "mlp.gate_proj.weight", ffn.clone(), 0..10);
            part(&layer.gate_up[1], "mlp.up_proj.weight", ffn.clone(), 0..10);
            part(&gate_up_bias[0], "mlp.gate_proj.bias", 0..1, ffn.clone());
            part(&gate_up_bias[1], "mlp.up_proj.bias", 0..1, ffn.clone());
            part(&layer.down, "mlp.down_proj.weight", 0..10, ffn);
            assert_eq!((layer.o_bias.is_some(), layer.down_bias.is_some()), (rank == 0, rank == 0));
            assert_eq!((model.embedding.rows(), model.head.rows()), (7, 1));
        }
    }
}

#[test]
fn bytes_counted_from_the_config_are_those_of_the_tensors() {
    for config in [config(), biased(), classifier(3)] {
        for (name, dtype) in [("F32", Dtype::F32), ("BF16", Dtype::BF16)] {
            let folder = Folder::with(&tensors(&config, name));
            for ranks in [1, 2, 4] {
                for rank in 0..ranks {
                    let shard = Shard::new(&config, rank, ranks).unwrap();
                    let counted = WeightBytes::of(&config, &shard, dtype);
                    assert_eq!(folder.open_rank(&config, rank, ranks).unwrap().bytes(), counted);
                }
            }
        }
    }
}

#[test]
fn a_classifier_has_all_rows_of_its_head_and_no_lm_head() {
    let config = classifier(3);
    let mut tensors = tensors(&config, "F32");
    let head = rows(&Folder::with(&tensors).open(&config).unwrap().head);
    assert_eq!(head, expected(&config, "score.weight", 0..3, 0..10));

    tensors.insert("lm_head.weight".into(), tensor("lm_head.weight", "F32", &[7, 10]));
    let model = Folder::with(&tensors).open(&config).unwrap();
    assert_eq!(rows(&model.head), head);
    assert_eq!(model.warnings, ["`lm_head.weight` is not used: the reward comes from `score.weight`"]);
}

/// As transformers 5.23.0 does with such folders.
#[test]
fn tied_embeddings_are_the_head_unless_there_is_another() {
    let config = ModelConfig { head: Head::LogitZero { tied: true }, ..config() };
    let mut tensors = tensors(&config, "BF16");
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let row = |name: &str| vec![(0..10).map(|index| value(name, index)).collect::<Vec<_>>()];

    let model = Folder::with(&tensors).open(&config).unwrap();
    assert_eq!((rows(&model.head), model.head.name()), (row(embedding), embedding));

    let equal = tensors[embedding].clone();
    tensors.insert(head.into(), equal);
    let model = Folder::with(&tensors).open(&config).unwrap();
    assert_eq!((rows(&model.head), model.warnings.len()), (row(embedding), 0));

    tensors.insert(head.into(), tensor(head, "BF16", &[7, 10]));
    let model = Folder::with(&tensors).open(&config).unwrap();
    assert_eq!(rows(&model.head), row(head));
    assert_eq!(
        model.warnings,
        [
            "config.json says tie_word_embeddings, but `lm_head.weight` differs from the embeddings; `lm_head.weight` \
          is used, as transformers 5 does (transformers 4 used the embeddings)"
        ]
    );

    tensors.remove(embedding);
    let model = Folder::with(&tensors).open(&config).unwrap();
    assert_eq!((rows(&model.head), model.embedding.name(), model.embedding.rows()), (row(head), head, 7));
}

/// Spellings of a name that transformers 5.24.0 loads, from the place of a tensor among all and its
/// name.
const SPELLINGS: [fn(usize, &str) -> String; 3] = [
    |_, name| name.strip_prefix("model.").unwrap_or(name).to_owned(),
    |_, name| format!("model.{name}"),
    |index, name| match index % 3 {
        0 => name.to_owned(),
        1 => SPELLINGS[0](index, name),
        _ => SPELLINGS[1](index, name),
    },
];

#[test]
fn names_without_and_with_more_of_the_prefix_are_read_the_same() {
    let tied = ModelConfig { head: Head::LogitZero { tied: true }, ..config() };
    for config in [config(), biased(), classifier(3), tied] {
        let tensors = tensors(&config, "BF16");
        let expected = all(&Folder::with(&tensors).open(&config).unwrap());
        for spelling in SPELLINGS {
            let spelled = |name: &String| {
                let index = tensors.keys().position(|found| found == name).expect("a name of the model");
                spelling(index, name)
            };
            let stored: Tensors =
                tensors.iter().map(|(name, tensor)| (spelled(name), tensor.clone())).collect();
            assert_eq!(stored.len(), tensors.len());
            for folder in [Folder::with(&stored), Folder::sharded(&stored, 3)] {
                let model = folder.open(&config).unwrap();
                assert!(model.warnings.is_empty(), "{:?}", model.warnings);
                let found = all(&model);
                assert_eq!(found.len(), expected.len());
                for ((name, rows), (table_name, expected)) in found.iter().zip(&expected) {
                    assert_eq!(*name, spelled(table_name));
                    assert!(rows == expected, "{name}");
                }
            }
        }
    }
}

/// Every tensor of a model by its stored name, in a fixed order.
pub(super) fn all(model: &ModelTensors) -> Vec<(String, Vec<Vec<f32>>)> {
    let layers = model.layers.iter().flat_map(LayerTensors::tensors);
    let tensors = layers.chain([&model.embedding, &model.final_norm, &model.head]);
    tensors.map(|tensor| (tensor.name().to_owned(), rows(tensor))).collect()
}

#[test]
fn warnings_name_tensors_as_the_file_does() {
    let spelled = |tensors: &Tensors| -> Tensors {
        tensors.iter().map(|(name, tensor)| (format!("model.{name}"), tensor.clone())).collect()
    };
    let config = classifier(3);
    let mut stored = spelled(&tensors(&config, "F32"));
    stored.insert("model.lm_head.weight".into(), tensor("lm_head.weight", "F32", &[7, 10]));
    assert_eq!(
        Folder::with(&stored).open(&config).unwrap().warnings,
        ["`model.lm_head.weight` is not used: the reward comes from `model.score.weight`"]
    );
}

/// Old versions of transformers stored them; transformers 5.24.0 loads such folders whole.
#[test]
fn buffers_and_empty_states_are_ignored_whatever_they_hold() {
    let buffers: [(&str, &'static str, &[usize], usize); 8] = [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", &[3], 12),
        ("model.layers.1.self_attn.rotary_emb.inv_freq", "F64", &[9, 1], 72),
        ("rotary_emb.inv_freq", "I8", &[0], 0),
        ("model.rotary_emb.original_inv_freq", "F32", &[3], 12),
        ("layers.0.self_attn.rotary_emb.cos_cached", "F16", &[1, 1, 32, 3], 192),
        ("layers.0.self_attn.rotary_emb.sin_cached", "BOOL", &[2], 2),
        ("model.layers.0.self_attn.masked_bias", "F32", &[], 4),
        ("model.layers.0.self_attn._extra_state", "U8", &[0], 0),
    ];
    let model = tensors(&config(), "F16");
    let mut stored = model.clone();
    for (name, dtype, shape, bytes) in buffers {
        stored.insert(name.into(), Tensor { dtype, shape: shape.to_vec(), bytes: vec![7; bytes] });
    }
    let folders = [Folder::with(&stored), Folder::sharded(&stored, 3), Folder::sharded(&model, 2)];
    // In the last folder only the index has them.
    let mut map = index_of(&folders[2]);
    map.extend(buffers.map(|(name, ..)| (name.to_owned(), "model-00001-of-00002.safetensors".into())));
    folders[2].write_index(map);
    for folder in folders {
        assert_eq!(folder.open(&config()).unwrap().warnings, [""; 0]);
    }

    // In two files.
    let folder = Folder::sharded(&stored, 2);
    folder.write(
        "more.safetensors",
        &safetensors(&[("rotary_emb.inv_freq".into(), stored["rotary_emb.inv_freq"].clone())].into()),
    );
    let mut map = index_of(&folder);
    map.insert("more".to_owned() + ".rotary_emb.inv_freq", "more.safetensors".into());
    folder.write_index(map);
    assert_eq!(folder.open(&config()).unwrap().warnings, [""; 0]);
}

fn index_of(folder: &Folder) -> serde_json::Map<String, serde_json::Value> {
    let index = std::fs::read(folder.file("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    index["weight_map"].as_object().unwrap().clone()
}

/// transformers 5 takes from the index which files there are, and nothing else.
#[test]
fn a_tensor_counts_whichever_listed_file_holds_it() {
    let tied = ModelConfig { head: Head::LogitZero { tied: true }, ..config() };
    for config in [tied, classifier(1)] {
        let stored = tensors(&config, "F32");
        let expected = all(&Folder::with(&stored).open(&config).unwrap());
        let folder = Folder::sharded(&stored, 2);
        let mut map = index_of(&folder);
        // In the other file, in the index by another spelling, not in the index, and only there.
        let other = map["model.layers.0.mlp.up_proj.weight"].clone();
        map.insert("model.layers.0.mlp.down_proj.weight".into(), other.clone());
        map.insert("model.layers.0.mlp.gate_proj.weight".into(), other.clone());
        let norm = map.remove("model.norm.weight").unwrap();
        map.insert("norm.weight".into(), norm);
        map.remove("model.embed_tokens.weight").unwrap();
        map.insert("lm_head.weight".into(), other);
        folder.write_index(map);
        let model = folder.open(&config).unwrap();
        assert_eq!(model.warnings, [""; 0]);
        assert!(all(&model) == expected);
    }
}

#[test]
fn a_single_file_goes_before_an_index_with_a_warning() {
    let all = tensors(&config(), "F32");
    let folder = Folder::sharded(&all, 2);
    folder.write("model.safetensors", &safetensors(&all));
    let model = folder.open(&config()).unwrap();
    assert_eq!(model.embedding.path(), folder.file("model.safetensors"));
    assert_eq!(model.warnings.len(), 1);
    assert!(model.warnings[0].ends_with("the weights are read from the first"), "{:?}", model.warnings);
}
