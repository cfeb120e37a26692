//! One wrapper per kernel: it checks the needs in the kernel's header, computes the grid, and
//! launches. A launch that a wrapper refuses never reaches the GPU.
//!
//! Every launch is `unsafe` for the same four reasons, and its `SAFETY` comment names them in
//! short: *types*: the arguments are those of the `.cu`, in its order; *bounds*: every buffer
//! covers what the grid touches; *aliases*: what is written is borrowed mutably; *lives*: launches
//! go to the context's compute stream, and dropping a [`DeviceBuffer`](super::buffer::DeviceBuffer)
//! waits for the device first. The indices that a kernel reads are those of
//! [`tables`](super::tables), whose limits are held to the buffers here: no wrapper rests on what
//! its caller states about data on the device.

mod attention;
mod boxes;
mod digest;
mod fill;
mod gate;
mod launch;
mod norm;
mod parts;
mod rope;
mod rows;

pub use attention::{Attention, Heads, SeamTiles};
pub use digest::DigestRows;
pub use gate::GateMul;
pub use launch::Ops;
pub use norm::{AddRmsNorm, BRANCH_HIDDEN_MAX, Delta, Norm};
pub use parts::AddParts;
pub use rope::{HeadNorms, Rope, RopeTables, norms_heads_of};
pub use rows::{GatherRows, Score};
