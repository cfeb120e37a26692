//! The figures of `kernels/README.md`, which are counted. The test fails where the page differs
//! from the counts; `make kernels-page` writes it anew.

use std::fmt::Write as _;
use std::path::Path;

use kudos::CudaTier;
use kudos::internals::backend::cuda::kernels::{ATTENTION, AttentionFeatures, AttentionKernel};

use crate::Gpu;
use crate::attention::heads;
use crate::launches::Counters;
use crate::occupancy::{MULTIPROCESSORS, compiler, resources};
use crate::sectors::{AtWidth, all_at_70b_width};
use crate::work::done;

const PAGE: &str = include_str!("../../kernels/README.md");
const BEGIN: &str = "<!-- Counted from here on: `make kernels-page` -->\n";
/// The beginning of the rest, which `tests/sass` holds.
const END: &str = "<!-- Read from machine code from here on: `make sass` -->\n";

/// Variable that makes the test write the page instead of comparing it.
const WRITE: &str = "KUDOS_WRITE_KERNELS_PAGE";

/// Tokens of the conversation for the counts of attention: its last tile and its last block are not
/// whole.
const TOKENS: u32 = 1_023;

/// Whether the build has machine code for everything, by the compiler that the page's figures are
/// of.
pub(crate) fn is_comparable() -> bool {
    let of_this_compiler = PAGE.contains(&format!("nvcc {}", compiler()));
    let resources = resources();
    let archs = MULTIPROCESSORS.iter().map(|sm| sm.arch);
    let all = archs.into_iter().all(|arch| resources.contains_key(&("gather_rows", arch)));
    all && (of_this_compiler || std::env::var_os(WRITE).is_some())
}

/// `gpus`: one for each tier.
pub(crate) fn figures_of_the_page_are_those_counted(gpus: &[Gpu], counters: Counters) {
    let page = page(gpus, counters);
    if std::env::var_os(WRITE).is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/README.md");
        std::fs::write(&path, page).unwrap();
        return;
    }
    let differs = page.lines().zip(PAGE.lines()).find(|(counted, written)| counted != written);
    assert!(
        page == PAGE,
        "kernels/README.md is not what was counted (`make kernels-page` writes it anew); the first line that differs, \
         as counted and as written: {differs:#?}"
    );
}

fn page(gpus: &[Gpu], counters: Counters) -> String {
    let (words, rest) = PAGE.split_once(BEGIN).expect("the page says where the counted part begins");
    let (_, machine_code) = rest.split_once(END).expect("the page says where the counted part ends");
    let tables: Vec<Vec<AtWidth>> = gpus.iter().map(|gpu| all_at_70b_width(gpu, counters)).collect();
    let (bytes, attention, registers) = (bytes(gpus, &tables), attention(gpus, counters), registers(&tables));
    format!("{words}{BEGIN}\n{bytes}{attention}{registers}\n{END}{machine_code}")
}

/// 65536 -> 65,536
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn bytes(gpus: &[Gpu], tables: &[Vec<AtWidth>]) -> String {
    let of = |tier| &tables[gpus.iter().position(|gpu| gpu.tier == tier).expect("a GPU for each tier")];
    let mut out = "## Bytes

Memory traffic of memory-bound kernels at the 70B model's width (hidden 8,192, 64 + 8 + 8 heads of 128, ffn 28,672):
bytes of distinct 32-byte sectors, read and written. Each token's includes the 4 bytes of its index or result where there is one;
once per launch come the weight, the head, and rope's tables for each position that occurs. `tests/kernels/sectors.rs`
holds them to the least that the work takes: a warp's request touches no more sectors than its bytes fill, wherever rows
(for rope: halves of heads) are whole sectors.

| kernel | each token, bf16 | f16 | once |
|---|---|---|---|
"
    .to_owned();
    for (bf16, f16) in of(CudaTier::Sm80).iter().zip(of(CudaTier::Sm75)) {
        assert_eq!(bf16.once, f16.once, "{}", bf16.what);
        let [each, each_f16, once] = [bf16.each, f16.each, bf16.once].map(grouped);
        writeln!(out, "| {} | {each} | {each_f16} | {once} |", bf16.what).unwrap();
    }
    out
}

fn attention(gpus: &[Gpu], counters: Counters) -> String {
    let mut out = format!(
        "
## Attention

For a conversation of {} tokens and one of the 70B model's 8 key heads with its 8 query heads (for `d64`: one of
SmolLM2-135M's 3, with 3; for `d256`: one of Gemma 2 9B's 8, with 2). Entries with a window and a cap (`_wc`) do the same
where there is neither. Bytes are those of q, k, v and o: distinct sectors, and what threads request, most of which the
caches serve. Matmul flops are in units of the causal minimum, 4 * head_dim for each query and each key that it sees; those
for 4,096 tokens follow from the work list, by the rule that `tests/kernels/work.rs` holds counts to. Bank conflicts
are passes of shared memory beyond the fewest.

| kernel | rows of a block | shared memory | bytes a token | requested | flops | at 4,096 | bank conflicts |
|---|---|---|---|---|---|---|---|
",
        grouped(TOKENS.into())
    );
    let without = |kernel: &&AttentionKernel| kernel.features == AttentionFeatures::NONE;
    for kernel in ATTENTION.iter().filter(|kernel| !kernel.is_plain()).filter(without) {
        let gpu = gpus.iter().find(|gpu| gpu.format == kernel.format).expect("a GPU for each tier");
        let group = match kernel.head_dim {
            64 => 3,
            256 => 2,
            _ => 8,
        };
        let done = done(gpu, kernel, counters, heads(group, 1, kernel.head_dim), TOKENS);
        writeln!(
            out,
            "| `{}` | {} | {} KiB | {} | {} | {:.3} | {:.3} | {} |",
            kernel.name,
            kernel.block_rows,
            kernel.shared_bytes / 1024,
            grouped(done.moved),
            grouped(done.requested),
            done.over_least,
            done.over_least_4096,
            done.bank_conflicts
        )
        .unwrap();
    }
    out
}

fn registers(tables: &[Vec<AtWidth>]) -> String {
    let resources = resources();
    let mut out = format!(
        "
## Registers and occupancy

Registers of a thread, and warps that a multiprocessor holds of blocks as launched at the 70B model's width, by
architecture. Nothing is spilled and no local is in memory: the build fails on either. nvcc {}.

| entry | threads |{}
|---|---|{}
",
        compiler(),
        MULTIPROCESSORS.iter().map(|sm| format!(" sm_{} |", sm.arch)).collect::<String>(),
        "---|".repeat(MULTIPROCESSORS.len())
    );
    let launched = tables.iter().flatten().map(|row| (row.entry.clone(), row.threads, 0));
    let attention =
        ATTENTION.iter().map(|kernel| (kernel.name.to_owned(), kernel.threads, kernel.shared_bytes));
    let mut entries: Vec<_> = attention.chain(launched).collect();
    entries.sort();
    entries.dedup();
    for (entry, threads, dynamic_shared_bytes) in entries {
        write!(out, "| `{entry}` | {threads} |").unwrap();
        for sm in &MULTIPROCESSORS {
            match resources.get(&(entry.as_str(), sm.arch)) {
                Some(found) => {
                    let warps = sm.warps(threads, found, dynamic_shared_bytes);
                    write!(out, " {}, {warps} |", found.registers).unwrap();
                }
                None => out.push_str(" - |"),
            }
        }
        out.push('\n');
    }
    out
}
