//! A PTX entry to a [`Program`]: opcodes become [`Op`]s, operands become slots, blocks get their
//! reconvergence points.
//!
//! A module is decoded whole when it is loaded, so that everything the interpreter does not know is
//! listed at once.

mod arith;
mod builder;
mod control;
mod convert;
mod flow;
mod inst;
mod mbarrier;
mod memory;
mod registers;
mod warpgroup;

pub use inst::*;

use crate::ptx::{Entry, Module, Source, Variable};
use builder::{Builder, Draft};

/// Decodes every kernel of a module.
///
/// # Errors
/// One line for each instruction that is not supported, over all kernels.
pub fn decode_module(module: &Module) -> Result<Vec<Program>, Vec<String>> {
    let mut programs = Vec::new();
    let mut unknown = Vec::new();
    for entry in &module.entries {
        match decode_entry(module, entry) {
            Ok(program) => programs.push(program),
            Err(lines) => unknown.extend(lines),
        }
    }
    if unknown.is_empty() { Ok(programs) } else { Err(unknown) }
}

fn decode_entry(module: &Module, entry: &Entry) -> Result<Program, Vec<String>> {
    let (layout, shared_bytes) = shared_layout(module, entry);
    let mut builder = Builder::new(entry, layout);
    let mut drafts = Vec::with_capacity(entry.instructions.len() + 1);
    let mut unknown: Vec<String> = Vec::new();
    for instruction in &entry.instructions {
        match builder.decode(instruction) {
            Ok(draft) => drafts.push(draft),
            Err(why) => {
                let place = place(module, &instruction.source);
                let line = format!("{}: `{}` ({place}): {why}", entry.name, instruction.text);
                // The same opcode is refused once per reason, not once per use.
                let seen = format!("`{} ", instruction.opcode);
                if !unknown.iter().any(|l| l.contains(&seen) && l.ends_with(&why)) {
                    unknown.push(line);
                }
            }
        }
    }
    if !unknown.is_empty() {
        return Err(unknown);
    }
    // Control that runs off the end returns.
    drafts.push(Draft::new(Op::Ret));
    let flow = flow::Flow::new(&drafts);
    let reconverge = flow.reconvergence();
    let allotted = registers::allot(&mut drafts, &builder, &flow);
    let mut text: Vec<(String, String)> =
        entry.instructions.iter().map(|i| (i.text.clone(), place(module, &i.source))).collect();
    text.push(("(end of the kernel)".into(), String::new()));
    let param_bytes = entry.params.iter().map(|p| p.offset + p.size).max().unwrap_or(0);
    Ok(Program {
        name: entry.name.clone(),
        code: allotted.code,
        pool: allotted.pool,
        reconverge,
        text,
        slots: allotted.slots,
        presets: allotted.presets,
        params: entry.params.iter().map(|p| (p.offset, p.size)).collect(),
        param_bytes,
        shared_bytes,
        threads_max: entry.threads_max,
        touched: allotted.touched,
    })
}

/// Address of every shared variable the entry can name, and the bytes of the static ones. Dynamic
/// memory begins after them, 128-byte aligned (the strictest alignment that kernels here ask for is
/// TMA's 128).
fn shared_layout(module: &Module, entry: &Entry) -> (Vec<(String, u64)>, usize) {
    let mut layout = Vec::new();
    let mut end = 0usize;
    let named = |v: &Variable| {
        format!("{:?}", entry.instructions.iter().map(|i| &i.operands).collect::<Vec<_>>())
            .contains(&format!("\"{}\"", v.name))
    };
    let module_level = module.shared.iter().filter(|v| v.size > 0 && named(v));
    for variable in entry.shared.iter().chain(module_level) {
        end = end.next_multiple_of(variable.align.max(1));
        layout.push((variable.name.clone(), end as u64));
        end += variable.size;
    }
    let dynamic: Vec<&Variable> = module.shared.iter().filter(|v| v.size == 0 && named(v)).collect();
    if let Some(align) = dynamic.iter().map(|v| v.align.max(1)).max() {
        end = end.next_multiple_of(align);
        layout.extend(dynamic.iter().map(|v| (v.name.clone(), end as u64)));
    }
    (layout, end)
}

/// `norm.cu:8`, with the place it was inlined at.
fn place(module: &Module, source: &Source) -> String {
    let name =
        |file: u32| module.files.get(&file).map_or("?", |n| n.rsplit('/').next().unwrap_or(n)).to_string();
    if source.line == 0 {
        return "no line information".into();
    }
    match source.inlined_at {
        Some((file, line)) => {
            format!("{}:{line}, inlined from {}:{}", name(file), name(source.file), source.line)
        }
        None => format!("{}:{}", name(source.file), source.line),
    }
}
