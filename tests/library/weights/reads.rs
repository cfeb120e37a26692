//! Good checkpoints: every value is where it belongs, on every rank.

use std::ops::Range;

use kudos::internals::config::{Head, ModelConfig};
use kudos::internals::shard::Shard;
use kudos::internals::weights::{Dtype, HostTensor, WeightBytes};

use super::folder::{Folder, biased, classifier, config, safetensors, shapes, tensor, tensors, value};

fn rows(tensor: &HostTensor) -> Vec<Vec<f32>> {
    (0..tensor.rows())
        .map(|row| {
            let mut out = vec![f32::NAN; tensor.cols()];
            tensor.row_to_f32(row, &mut out);
            out
        })
        .collect()
}

/// What a part of a named tensor must hold.
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
            named(&layer.post_attention_norm, "model.layers.1.post_attention_layernorm.weight");
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
fn each_rank_gets_its_rows_and_columns_and_rank_zero_the_output_biases() {
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
fn a_classifier_has_all_rows_of_its_head_and_lm_head_is_left_alone() {
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
fn tied_embeddings_are_the_head_unless_the_checkpoint_has_another() {
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

#[test]
fn stored_rotary_frequencies_are_ignored() {
    let mut tensors = tensors(&config(), "F16");
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    tensors.insert(name.into(), tensor(name, "F32", &[3]));
    assert!(Folder::with(&tensors).open(&config()).unwrap().warnings.is_empty());
}

#[test]
fn a_single_file_goes_before_an_index_and_that_is_said() {
    let all = tensors(&config(), "F32");
    let folder = Folder::sharded(&all, 2);
    folder.write("model.safetensors", &safetensors(&all));
    let model = folder.open(&config()).unwrap();
    assert_eq!(model.embedding.path(), folder.file("model.safetensors"));
    assert_eq!(model.warnings.len(), 1);
    assert!(model.warnings[0].ends_with("the weights are read from the first"), "{:?}", model.warnings);
}
