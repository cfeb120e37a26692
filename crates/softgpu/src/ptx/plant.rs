//! Bugs planted into kernels as they are loaded, so that a test can show that the checks catch
//! them.
//!
//! A plant edits the tree between the parser and the decoder. One that finds nothing to edit in a
//! kernel that it names is an error of the load, so that no test passes because its plant missed.

use super::ast::{Entry, Instruction, Module, Operand};
use super::lex::number;

/// Opcode of an instruction that a plant has dropped. The lexer makes no such word, so no PTX text
/// holds it.
pub const DROPPED: &str = "(dropped)";

/// A list of plants, as [`Plants::parse`] reads it.
#[derive(Clone, Debug, Default)]
pub struct Plants(Vec<Plant>);

#[derive(Clone, Debug)]
struct Plant {
    /// As written, for messages.
    text: String,
    /// An entry's name, or a prefix of it that ends in `*`.
    kernel: String,
    /// The instruction's position among those that match, from 1; `None` is all of them.
    nth: Option<usize>,
    /// The beginning of the instruction's text, after its guard.
    prefix: String,
    edit: Edit,
}

#[derive(Clone, Copy, Debug)]
enum Edit {
    Drop,
    Set { operand: usize, value: u64 },
}

impl Plants {
    /// Reads `KERNEL: drop N PREFIX; KERNEL: set every PREFIX OPERAND IMMEDIATE`; the README
    /// describes it.
    ///
    /// # Errors
    /// The first malformed plant.
    pub fn parse(text: &str) -> Result<Self, String> {
        let items = text.split(';').map(str::trim).filter(|item| !item.is_empty());
        items.map(Plant::parse).collect::<Result<_, _>>().map(Self)
    }

    /// Edits the kernels that are named; returns one line for each edit: the plant and its place.
    ///
    /// # Errors
    /// A plant that finds no instruction, or no operand, in a kernel that it names.
    pub fn apply(&self, module: &mut Module) -> Result<Vec<String>, String> {
        let mut done = Vec::new();
        for plant in &self.0 {
            for entry in module.entries.iter_mut().filter(|entry| plant.names(&entry.name)) {
                plant.apply(entry, &mut done)?;
            }
        }
        Ok(done)
    }
}

impl Plant {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{text}` is a malformed plant: {why}");
        let (kernel, edit) = text.split_once(':').ok_or_else(|| wrong("no `KERNEL:` before it"))?;
        let words: Vec<&str> = edit.split_whitespace().collect();
        let [verb, which, rest @ ..] = words.as_slice() else {
            return Err(wrong("expected `drop` or `set`, an index or `every`, and an instruction"));
        };
        let nth = match *which {
            "every" => None,
            which => match which.parse() {
                Ok(n) if n > 0 => Some(n),
                _ => return Err(wrong("the instruction's index must be `every` or at least 1")),
            },
        };
        let (prefix, edit) = match (*verb, rest) {
            ("drop", prefix) => (prefix, Edit::Drop),
            ("set", [prefix @ .., operand, value]) => {
                let operand = operand.parse().map_err(|_| wrong("the operand's index must be an integer"))?;
                (prefix, Edit::Set { operand, value: immediate(value).map_err(|why| wrong(&why))? })
            }
            _ => return Err(wrong("expected `drop`, or `set` with an operand's index and an immediate")),
        };
        if prefix.is_empty() {
            return Err(wrong("no instruction"));
        }
        let kernel = kernel.trim();
        if kernel.is_empty() || kernel.strip_suffix('*').unwrap_or(kernel).contains('*') {
            return Err(wrong("the kernel must be a name or a prefix that ends in `*`"));
        }
        Ok(Self { text: text.into(), kernel: kernel.into(), nth, prefix: prefix.join(" "), edit })
    }

    fn names(&self, kernel: &str) -> bool {
        match self.kernel.strip_suffix('*') {
            Some(prefix) => kernel.starts_with(prefix),
            None => kernel == self.kernel,
        }
    }

    fn apply(&self, entry: &mut Entry, done: &mut Vec<String>) -> Result<(), String> {
        let matching: Vec<usize> = (0..entry.instructions.len())
            .filter(|&at| without_guard(&entry.instructions[at].text).starts_with(&self.prefix))
            .collect();
        let chosen = match self.nth {
            None => &matching[..],
            Some(n) => matching.get(n - 1..n).unwrap_or_default(),
        };
        if chosen.is_empty() {
            let wanted = self.nth.map_or(String::new(), |n| format!(", not {n}"));
            return Err(format!(
                "plant `{}`: kernel `{}` has {} instructions that start with `{}`{wanted}",
                self.text,
                entry.name,
                matching.len(),
                self.prefix
            ));
        }
        for &at in chosen {
            let instruction = &mut entry.instructions[at];
            let before = instruction.text.clone();
            self.edit.apply(instruction).map_err(|why| format!("plant `{}`: {why}", self.text))?;
            done.push(format!("`{}` in kernel `{}`: `{before}`", self.text, entry.name));
        }
        Ok(())
    }
}

impl Edit {
    /// The text stays, so that later plants count instructions as before; values that were set are
    /// appended to it.
    fn apply(self, instruction: &mut Instruction) -> Result<(), String> {
        match self {
            Self::Drop => {
                instruction.opcode = DROPPED.into();
                instruction.operands.clear();
                instruction.guard = None;
            }
            Self::Set { operand, value } => {
                let (count, text) = (instruction.operands.len(), instruction.text.clone());
                let place = instruction.operands.get_mut(operand).ok_or_else(|| {
                    format!("`{text}` has {count} operands; there is no operand {operand}, counted from 0")
                })?;
                *place = Operand::Imm(value);
                instruction.text = format!("{text} (planted: operand {operand} is {})", value as i64);
            }
        }
        Ok(())
    }
}

/// The text after `@%p1` or `@!%p1`.
fn without_guard(text: &str) -> &str {
    if text.starts_with('@') { text.split_once(' ').map_or("", |(_, rest)| rest) } else { text }
}

/// An integer or the bits of a `0f` constant, as PTX writes them, perhaps after a minus.
fn immediate(word: &str) -> Result<u64, String> {
    match word.strip_prefix('-') {
        Some(digits) => number(digits).map(|n| (n as i64).wrapping_neg() as u64),
        None => number(word),
    }
}
